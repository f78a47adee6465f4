"""``lrsweep explain``: which trial is meant, what is said of it, and mistakes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lrsweep.errors import UserError
from lrsweep.explain import find_trial, print_explanation
from lrsweep.store import ResultStore
from tests.commands import lrsweep
from tests.report.synthetic import Sweep, make_trial, write_sweep

SWEEP = Sweep(schemes=("preln", "qknorm"), lrs=(1e-3, 3e-3, 0.01, 3.0), seeds=(0, 1), steps=60, layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder without its tables, as an interrupted sweep leaves it."""
    root = tmp_path_factory.mktemp("work") / "results" / "made-up"
    store = ResultStore(root)
    write_sweep(store, SWEEP)
    row, steps, layers = make_trial(SWEEP, "soft_cap", 0.01, 0)
    store.write_trial(row, steps, layers)
    store.write_manifest({"sizes": {"0.2m": {"epsilon": 0.25}}})
    return root


def explain(name: str, folder: Path, plot: Path | None = None) -> str:
    console = Console(file=io.StringIO(), width=80)
    assert print_explanation(name, folder, plot, console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_unstable_trial(folder: Path) -> None:
    text = explain("preln-gpt-0.2m-lr3-s0", folder)
    lines = text.splitlines()
    assert lines[0] == "preln (gpt 0.2m), LR 3, seed 0: diverged"
    assert lines[1].startswith("the smoothed loss left its best")
    assert lines[2].startswith("onset of the verdict: step ")
    assert lines[3] == "siblings: 6 stable trials, LR 1e-3 … 0.01, 2 seeds"
    assert "signals left their band" in lines[4]
    assert "false alarms" in lines[5]
    table = lines[lines.index("") + 1 :]
    assert max(map(len, table)) <= 80
    onset = int(lines[2].rsplit(" ", 1)[1])
    first = re.match(r" *1 +(\w.*\w) {2,}(\d+) +(\d+) +(\d+) +\S", table[1])
    assert first is not None
    assert int(first[2]) + int(first[4]) == onset


def test_a_stable_trial_is_compared_with_the_others(folder: Path) -> None:
    text = explain("qknorm-gpt-0.2m-lr0.003-s1", folder)
    assert "LR 3e-3, seed 1: stable" in text
    assert "siblings: 5 stable trials" in text


def test_too_few_siblings(folder: Path, tmp_path: Path) -> None:
    assert "0 stable siblings: a band needs 3" in explain("soft_cap", folder)
    with pytest.raises(UserError, match=r"--plot: .* has 0 stable siblings, a band needs 3"):
        explain("soft_cap", folder, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_but_the_plot(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    explain("preln-gpt-0.2m-lr3-s0", folder, tmp_path / "a.svg")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_which_trial_is_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = "preln-gpt-0.2m-lr3-s0"
    assert find_trial(trial, folder)[1] == trial
    assert find_trial("soft", folder)[1] == "soft_cap-gpt-0.2m-lr0.01-s0"
    assert find_trial("cap-gpt", folder)[1] == "soft_cap-gpt-0.2m-lr0.01-s0"
    store, found = find_trial(str(folder / "steps" / f"{trial}.parquet"), None)
    assert (store.root, found) == (folder, trial)
    monkeypatch.chdir(folder.parent.parent)
    assert find_trial("soft", None)[1] == "soft_cap-gpt-0.2m-lr0.01-s0"
    monkeypatch.chdir(folder / "steps")
    assert find_trial(f"{trial}.parquet", None)[0].root == folder


def test_a_name_goes_before_those_it_begins(tmp_path: Path) -> None:
    for name in ("a-s1", "a-s10", "a-s1-x"):
        (tmp_path / "steps").mkdir(exist_ok=True)
        (tmp_path / "steps" / f"{name}.parquet").touch()
    assert find_trial("a-s1", tmp_path)[1] == "a-s1"
    assert find_trial("a-s10", tmp_path)[1] == "a-s10"
    (tmp_path / "steps" / "a-s1.parquet").unlink()
    assert find_trial("a-s1", tmp_path)[1] == "a-s1-x"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prenl-gpt-0.2m-lr3-s0", "has no trial 'prenl-gpt-0.2m-lr3-s0'; nearest: preln-gpt-0.2m-lr3-s0, "),
        ("lr0.01", "'lr0.01' stands for 5 trials: preln-gpt-0.2m-lr0.01-s0, .*, …; give more of it"),
        ("steps/none.parquet", "steps/none.parquet does not exist"),
    ],
)
def test_a_name_that_says_too_little_or_nothing(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_trial(name, folder)


def test_folders_that_will_not_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--out .* holds no trial with its steps"):
        find_trial("preln", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="results/ holds no trial"):
        find_trial("preln", None)
    (tmp_path / "results").mkdir()
    for name in "ab":
        (tmp_path / "results" / name).symlink_to(folder)
    with pytest.raises(UserError, match="is in results/a, results/b; name one with --out"):
        find_trial("soft_cap", None)
    (tmp_path / "steps").symlink_to(folder / "steps")
    with pytest.raises(UserError, match="is not a result folder"):
        explain("soft_cap", tmp_path)


def test_a_trial_that_ended_in_an_error(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    row, steps, layers = make_trial(SWEEP, "preln", 0.01, 0)
    store.write_trial(replace(row, verdict="error", reason="out of memory"), steps, layers)
    store.write_manifest({"sizes": {"0.2m": {"epsilon": 0.25}}})
    with pytest.raises(UserError, match="ended in an error and has nothing to explain: out of memory"):
        explain("preln", tmp_path)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    result = lrsweep("explain", "preln-gpt-0.2m-lr3-s0", "--out", folder, "--plot", "a.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "signals left their band" in result.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    mistake = lrsweep("explain", "preln-gpt-0.2m-lr3-s0", "--out", folder, "--plot", "a.gif", cwd=tmp_path)
    assert mistake.returncode == 2
    assert mistake.stderr == "error: --plot a.gif must end in .svg, .pdf, .png\n"
