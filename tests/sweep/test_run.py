"""Whole sweeps in processes of their own: executed, interrupted, killed, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from lrsweep.store import TRIAL_COLUMNS, ResultStore
from tests.commands import QUICK, lrsweep, sweep_under_way, whole_trials

# One after the other: each starts a Ray of its own, and some look for its workers.
pytestmark = pytest.mark.xdist_group("ray")

GRID = ("--arch", "preln", "qknorm", "--lrs", "1e-3", "1e-2", "1e6", "--seeds", "1", "--device", "cpu")
LONG = ("--steps", "100", "--batch-size", "2")
UNTIMED = [c for c in TRIAL_COLUMNS if c != "wall_s"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep on Ray that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr + result.stdout
    return folder / "out"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The same sweep, under way: at least one trial finished, at least one not."""
    with sweep_under_way(tmp_path, *GRID, *LONG, "--out", "out", "--jobs", "1") as process:
        yield process


def finish_and_compare(folder: Path, undisturbed: Path) -> None:
    """The same command again: finished trials untouched, the same tables as the undisturbed run's."""
    finished = whole_trials(folder / "out")
    assert 1 <= len(finished) < 6
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr + result.stdout
    assert f"{len(finished)} of 6 trials are finished" in result.stdout
    after = whole_trials(folder / "out")
    assert {t: after[t] for t in finished} == finished
    for name in ("frontier.csv", "brackets.csv", "tolerance.csv"):
        assert (folder / "out" / name).read_text() == (undisturbed / name).read_text()
    ours, theirs = ResultStore(folder / "out").trials()[UNTIMED], ResultStore(undisturbed).trials()[UNTIMED]
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_every_file_of_the_contract_is_there(undisturbed: Path) -> None:
    names = ["manifest.json", "trials.parquet", "frontier.csv", "frontier.md", "frontier.tex", "tolerance.csv"]
    for name in [*names, "report/index.html"]:
        assert (undisturbed / name).stat().st_size > 0, name
    for kind in ("svg", "png", "pdf"):
        assert len(list((undisturbed / "report").glob(f"*.{kind}"))) >= 5
    trials = ResultStore(undisturbed).trials()
    assert list(trials.columns) == list(TRIAL_COLUMNS)
    assert len(trials) == 6
    for trial in trials["trial"]:
        assert (undisturbed / "layers" / f"{trial}.parquet").stat().st_size > 0
    assert not list(undisturbed.rglob("*.tmp"))


def test_records_hold_every_step_and_layer(undisturbed: Path) -> None:
    store = ResultStore(undisturbed)
    trials = store.trials().set_index(["scheme", "lr"])
    trial = trials.loc[("preln", 1e-3), "trial"]
    steps, layers = store.steps(trial), store.layers(trial)
    assert steps["step"].tolist() == list(range(1, 101))
    assert steps["tokens"].tolist() == [2 * 128 * i for i in range(1, 101)]
    assert steps["lr"].max() == 1e-3
    assert np.isfinite(steps[["loss", "grad_norm", "update_norm", "log_z", "logit_max"]].to_numpy()).all()
    assert not steps["skipped"].any()
    per_step = {(s, t) for s in ("qkv", "proj", "fc1", "fc2") for t in ("l2_rms", "l2_max")}
    per_step |= {("attn", "logit_max"), ("attn", "logit_rms")}
    assert set(zip(layers["site"], layers["stat"], strict=True)) == per_step
    assert len(layers) == 100 * 4 * len(per_step)
    maxima = layers[(layers["site"] == "attn") & (layers["stat"] == "logit_max")].groupby("step")["value"].max()
    np.testing.assert_array_equal(maxima.to_numpy(), steps["logit_max"].to_numpy(dtype=np.float32))
    row = trials.loc[("preln", 1e-3)]
    assert row["logit_max"] == steps["logit_max"].max()
    assert row["loss_init"] == pytest.approx(np.log(256), rel=0.02)
    assert row["loss_final"] < row["loss_init"]
    assert row["steps"] == 100


def test_divergence_is_a_result_and_ends_the_trial_early(undisturbed: Path) -> None:
    hot = ResultStore(undisturbed).trials().query("lr == 1e6")
    assert set(hot["verdict"]) <= {"diverged", "nonfinite"}
    assert (hot["steps"] < 100).all()
    assert hot["loss_final"].isna().all()
    assert (hot["reason"].str.len() > 0).all()


def test_manifest_says_what_was_run(undisturbed: Path) -> None:
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["command"].startswith("lrsweep sweep --arch preln qknorm")
    assert manifest["config"]["arch"] == ["preln", "qknorm"]
    assert manifest["sizes"]["0.2m"]["lrs"] == [1e-3, 1e-2, 1e6]
    assert manifest["sizes"]["0.2m"]["train"]["steps"] == 100
    assert manifest["hardware"]["cores"] == os.cpu_count()
    assert manifest["versions"]["torch"]
    assert manifest["started"] <= manifest["finished"]
    assert len(manifest["data"]["0.2m"]["hash"]) == 16


def test_ray_and_local_give_bitwise_the_same(undisturbed: Path, tmp_path: Path) -> None:
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", "--local", cwd=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    ours, theirs = ResultStore(tmp_path / "out"), ResultStore(undisturbed)
    pd.testing.assert_frame_equal(ours.trials()[UNTIMED], theirs.trials()[UNTIMED], check_exact=True)
    for trial in ours.trials()["trial"]:
        pd.testing.assert_frame_equal(ours.steps(trial), theirs.steps(trial), check_exact=True)
        pd.testing.assert_frame_equal(ours.layers(trial), theirs.layers(trial), check_exact=True)


def test_output_without_a_terminal_is_one_plain_line_a_trial(tmp_path: Path) -> None:
    result = lrsweep("sweep", *GRID, *QUICK, "--out", "out", "--local", cwd=tmp_path)
    lines = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[{i}/6" for i in range(1, 7)]
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_kill_9_of_the_driver_then_the_same_command(
    running: subprocess.Popen[str], undisturbed: Path, tmp_path: Path
) -> None:
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    finish_and_compare(tmp_path, undisturbed)


def family_of(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that it has started."""
    return psutil.Process(running.pid).children(recursive=True)


def test_kill_9_of_a_worker_is_made_good(running: subprocess.Popen[str], undisturbed: Path, tmp_path: Path) -> None:
    # Ray writes into a worker's command line what it is at: ResourceTrainable.train, or between two steps Actor.
    names = "ray::ResourceTrainable", "ray::Actor"
    workers = [p for p in family_of(running) if " ".join(p.cmdline()).startswith(names)]
    assert workers
    workers[0].kill()
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    ours, theirs = ResultStore(tmp_path / "out").trials()[UNTIMED], ResultStore(undisturbed).trials()[UNTIMED]
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.full)],
)
def test_interrupt_ends_in_seconds_and_leaves_no_process(
    running: subprocess.Popen[str], undisturbed: Path, tmp_path: Path, how: signal.Signals
) -> None:
    family = family_of(running)
    if how == signal.SIGINT:  # A terminal sends it to the whole group.
        os.killpg(running.pid, how)
    else:
        running.send_signal(how)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "interrupted" in out
    assert "lrsweep sweep --arch preln qknorm" in out
    assert "Traceback" not in out
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    finish_and_compare(tmp_path, undisturbed)


def test_second_sweep_in_a_busy_folder_is_refused(running: subprocess.Popen[str], tmp_path: Path) -> None:
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "another sweep is writing there" in result.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a quick finished sweep."""
    folder = tmp_path_factory.mktemp("small")
    result = lrsweep("sweep", *GRID, *QUICK, "--out", "out", "--local", cwd=folder)
    assert result.returncode in (0, 4), result.stderr + result.stdout
    return folder


def snapshot(folder: Path) -> dict[str, int]:
    """Every file and when it was last written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_finished_sweep_runs_nothing_again(small: Path) -> None:
    before = whole_trials(small / "out")
    result = lrsweep("sweep", *GRID, *QUICK, "--out", "out", cwd=small)
    assert result.returncode in (0, 4)
    assert whole_trials(small / "out") == before
    assert "6 of 6 trials are finished" in result.stdout


def test_another_configuration_in_the_folder_is_refused_and_named(small: Path) -> None:
    before = snapshot(small)
    result = lrsweep("sweep", *GRID, *QUICK, "--steps", "7", "--out", "out", "--local", cwd=small)
    assert result.returncode == 2
    assert "train.0.2m.steps 6 → 7" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert snapshot(small) == before


def test_axes_grow_in_place(small: Path) -> None:
    before = whole_trials(small / "out")
    result = lrsweep(
        "sweep", "--arch", "soft_cap", "--lrs", "1e-3", "--seeds", "1", *QUICK, "--out", "out", "--local", cwd=small
    )
    assert result.returncode in (0, 4), result.stderr
    after = whole_trials(small / "out")
    assert {t: after[t] for t in before} == before
    assert len(after) == len(before) + 1
    manifest = json.loads((small / "out" / "manifest.json").read_text())
    assert manifest["config"]["arch"] == ["preln", "qknorm", "soft_cap"]
    assert manifest["sizes"]["0.2m"]["lrs"] == [1e-3, 1e-2, 1e6]
    assert set(ResultStore(small / "out").trials()["scheme"]) == {"preln", "qknorm", "soft_cap"}


def test_a_record_cut_short_is_named(small: Path) -> None:
    path = next((small / "out" / "steps").glob("preln*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        result = lrsweep("sweep", *GRID, *QUICK, "--out", "out", "--local", cwd=small)
        assert result.returncode == 2
        assert path.name in result.stderr
        assert "cut short" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    finally:
        path.write_bytes(whole)


def test_frontier_outside_the_grid_is_exit_code_4_and_the_printed_command_extends(tmp_path: Path) -> None:
    result = lrsweep(
        "sweep",
        "--arch",
        "preln",
        "--lrs",
        "1e-4",
        "1e-3",
        "--seeds",
        "1",
        *QUICK,
        "--out",
        "out",
        "--local",
        cwd=tmp_path,
    )
    assert result.returncode == 4, result.stdout + result.stderr
    printed = next(line.strip() for line in result.stdout.splitlines() if line.strip().startswith("lrsweep sweep"))
    words = printed.split()[1:]
    lrs = words[words.index("--lrs") + 1 : words.index("--lrs") + 4]
    assert [float(lr) for lr in lrs] == [0.01, 0.1, 1.0]
    again = lrsweep(*words, cwd=tmp_path)
    assert again.returncode in (0, 4), again.stderr
    assert set(ResultStore(tmp_path / "out").trials()["lr"]) == {1e-4, 1e-3, 0.01, 0.1, 1.0}


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = lrsweep("sweep", *GRID, *QUICK, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0
    assert "6 trials" in result.stdout
    assert list(tmp_path.iterdir()) == []
