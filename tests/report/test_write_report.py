"""From a result folder to its report, and back through the readers that users have."""

import json
import subprocess
import sys
from dataclasses import replace

import duckdb
import pandas as pd
import pytest

from lrsweep.analysis import FRONTIER_COLUMNS, brackets, frontier, judge, spike_scores, tolerance
from lrsweep.errors import UserError
from lrsweep.report import Report, write_report
from lrsweep.report.tables import display_order
from lrsweep.store import ResultStore
from tests.report.synthetic import Sweep, make_trial, write_sweep

SWEEP = Sweep(schemes=("qknorm", "preln"), lrs=(0.01, 0.1, 1.0), seeds=(0, 1), steps=20, layers=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ResultStore:
    store = ResultStore(tmp_path_factory.mktemp("sweep"))
    write_sweep(store, SWEEP)
    write_sweep(store, replace(SWEEP, schemes=("preln",), body="llama", size="10m"))
    row, steps, layers = make_trial(SWEEP, "preln", 3.0, 0)
    store.write_trial(replace(row, verdict="error", reason="out of memory"), steps, layers)
    return store


@pytest.fixture(scope="module")
def report(store) -> Report:
    return write_report(store, epsilon={"0.2m": 0.25, "10m": 0.5})


def test_every_file_is_there_and_nothing_else(store, report):
    stems = ["frontier", "tolerance", "loss_vs_lr", "loss_curves", "logits", "lead"]
    figures = [f"{stem}-{part}" for part in ("gpt-0.2m", "llama-10m") for stem in stems]
    figures += ["norms-preln-gpt-0.2m", "norms-qknorm-gpt-0.2m", "norms-preln-llama-10m"]
    expected = {f"report/{figure}.{suffix}" for figure in figures for suffix in ("svg", "pdf", "png")}
    expected |= {"report/index.html", "frontier.csv", "frontier.md", "frontier.tex", "brackets.csv", "tolerance.csv"}
    expected |= {"spikes.csv", "lead_times.csv"}
    assert {str(path.relative_to(store.root)) for path in report.paths} == expected
    on_disk = {str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()}
    sweep = {p for p in on_disk if p.startswith(("steps/", "layers/"))} | {"manifest.json", "trials.parquet"}
    assert on_disk - sweep == expected
    assert all(path.stat().st_size > 0 for path in report.paths)


def test_tables_say_what_the_analysis_says(store, report):
    epsilon = {"0.2m": 0.25, "10m": 0.5}
    trials = store.trials()
    scored = judge(trials, epsilon).query("outcome != 'error'"), store.steps
    for name, table in (
        ("frontier", frontier(trials, epsilon, spike_scores(*scored))),
        ("spikes", spike_scores(*scored)),
        ("brackets", brackets(trials, epsilon)),
        ("tolerance", tolerance(trials)),
    ):
        pd.testing.assert_frame_equal(pd.read_csv(store.root / f"{name}.csv"), display_order(table), check_dtype=False)
    assert tuple(report.frontier.columns) == FRONTIER_COLUMNS
    assert report.errors == 1
    assert len(report.advice) == len(report.frontier) == 3


def test_duckdb_reads_the_tables(store, report):
    query = f"select scheme, max_stable_lr from '{store.root}/frontier.csv' where body = 'gpt' order by scheme"
    rows = duckdb.sql(query).fetchall()
    assert (
        rows
        == report.frontier.query("body == 'gpt'")
        .sort_values("scheme")[["scheme", "max_stable_lr"]]
        .apply(tuple, axis=1)
        .tolist()
    )
    columns = duckdb.sql(f"describe select * from '{store.root}/tolerance.csv'").df()["column_name"].tolist()
    assert columns == ["scheme", "body", "size", "seed", "epsilon", "max_lr"]


def test_written_again_it_is_the_same(store, report):
    before = {path: path.read_bytes() for path in report.paths}
    again = write_report(store, epsilon={"0.2m": 0.25, "10m": 0.5})
    assert {path: path.read_bytes() for path in again.paths} == before


def test_one_section_has_plain_names(tmp_path):
    store = ResultStore(tmp_path)
    write_sweep(store, replace(SWEEP, schemes=("preln",), lrs=(0.1,), seeds=(0,)))
    (tmp_path / "manifest.json").unlink()
    report = write_report(store, epsilon=0.25)
    assert tmp_path / "report" / "frontier.svg" in report.paths
    assert report.advice[0].where == "above"


def test_errors_alone_have_a_page_without_figures(tmp_path):
    store = ResultStore(tmp_path)
    row, steps, layers = make_trial(SWEEP, "preln", 0.1, 0)
    store.write_trial(replace(row, verdict="error"), steps, layers)
    report = write_report(store, epsilon=0.25)
    assert report.frontier["seeds"].tolist() == [0]
    assert [p.name for p in report.paths if p.parent.name == "report"] == ["index.html"]
    assert "0 trials. 1 more failed" in report.index.read_text()


def test_trials_parquet_alone_is_enough(tmp_path, store):
    store.write_trials()
    content = (store.root / "trials.parquet").read_bytes()
    (tmp_path / "trials.parquet").write_bytes(content)
    report = write_report(ResultStore(tmp_path), epsilon=0.25)
    assert (tmp_path / "trials.parquet").read_bytes() == content
    assert not [p for p in report.paths if "logits" in p.name]
    assert [p for p in report.paths if "frontier-gpt" in p.name]


def test_elsewhere_it_leaves_the_result_folder_alone(tmp_path):
    store = ResultStore(tmp_path / "sweep")
    write_sweep(store, replace(SWEEP, schemes=("preln",), lrs=(0.1, 0.2), seeds=(0,)))
    before = sorted(path for path in store.root.rglob("*"))
    report = write_report(store, epsilon=0.25, out=tmp_path / "there")
    assert sorted(store.root.rglob("*")) == before
    assert all(path.is_relative_to(tmp_path / "there") for path in report.paths)
    assert (tmp_path / "there" / "trials.parquet").exists()


def test_no_finished_trial(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_report(ResultStore(tmp_path), epsilon=0.25)
    ResultStore(tmp_path).write_trials()
    with pytest.raises(UserError, match="no finished trial"):
        write_report(ResultStore(tmp_path), epsilon=0.25)


def test_a_size_without_epsilon(store):
    with pytest.raises(ValueError, match="epsilon has no entry for size"):
        write_report(store, epsilon={"0.2m": 0.25})


def test_neither_torch_nor_ray_nor_pyplot_is_imported():
    code = "import sys, json, lrsweep.report; print(json.dumps([m for m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = set(json.loads(output))
    assert "matplotlib.figure" in modules
    assert not modules & {"torch", "ray", "matplotlib.pyplot", "lrsweep.config", "lrsweep.model", "lrsweep.schemes"}
