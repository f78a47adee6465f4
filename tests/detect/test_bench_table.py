"""``python -m lrsweep.detector_bench`` on a folder of curves whose answer is known."""

import csv
import json
import random
import subprocess
import sys

import pytest

from lrsweep.detector_bench.curves import read_curves
from lrsweep.detector_bench.score import score_own, score_peer
from lrsweep.errors import UserError

LIGHTNING = "Lightning SpikeDetection (mean of 10, 3×)"


def write(path, losses, norms=None, every=1):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", *(["grad_norm"] if norms else [])])
        for t, loss in enumerate(losses):
            writer.writerow([1_000 + every * t, loss, *([norms[t]] if norms else [])])


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)

    def quiet(points):
        return [round(3.0 + draw.gauss(0, 0.02), 4) for _ in range(points)]

    write(tmp_path / "a" / "healthy.csv", quiet(400))
    write(tmp_path / "a" / "data.csv", [*quiet(200), 12.0, *quiet(200)])
    write(tmp_path / "a" / "spike.csv", [*quiet(200), 3.5, 4.0, 3.5, *quiet(200)], every=5)
    write(tmp_path / "b" / "diverged.csv", [*quiet(200), *[x + 9 for x in quiet(100)]], [1.0] * 300)
    write(tmp_path / "b" / "nan.csv", [*quiet(50), "", *["nan"] * 20])
    write(tmp_path / "b" / "edge.csv", ["inf"] * 20)
    rows = [
        ("a/healthy.csv", "healthy", ""),
        ("a/data.csv", "data_outliers", "1200"),
        ("a/spike.csv", "spike_recovered", "2000"),
        ("b/diverged.csv", "divergence", "1200"),
        ("b/nan.csv", "nonfinite", "1051"),
        ("b/edge.csv", "nonfinite_after_end", ""),
    ]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "event_first_step"), *rows])
    return tmp_path


def test_curves_are_read_with_their_holes_and_labels(folder):
    curves = {curve.file: curve for curve in read_curves(folder)}
    assert "b/edge.csv" not in curves
    assert curves["a/data.csv"].event_step is None
    assert curves["b/nan.csv"].losses[50] is None
    assert curves["b/diverged.csv"].grad_norms == [1.0] * 300
    assert curves["a/spike.csv"].grad_norms == [None] * 403
    assert {curve.group for curve in curves.values()} == {
        "spiking",
        "diverged or non-finite",
        "healthy",
        "data outliers",
    }


def test_the_detectors_own_line(folder):
    score = score_own(read_curves(folder))
    assert score.alarmed == {"spiking": 1, "diverged or non-finite": 2, "healthy": 0, "data outliers": 0}
    # Spike and divergence are told at their second high point, which is 5 steps and 1 step late; NaN at the third.
    assert (score.points_late, score.steps_late) == (1, 2)
    assert score.us_per_update > 0


def test_a_peers_line(folder):
    score = score_peer(LIGHTNING, read_curves(folder))
    assert score.alarmed == {"spiking": 0, "diverged or non-finite": 2, "healthy": 0, "data outliers": 1}
    assert (score.points_late, score.steps_late) == (0, 0)


def test_an_alarm_before_the_event_does_not_catch_it(folder):
    write(folder / "b" / "diverged.csv", [3.0] * 100 + [30.0] + [3.0] * 99 + [6.0] * 100)
    score = score_peer(LIGHTNING, read_curves(folder))
    assert score.alarmed["diverged or non-finite"] == 1
    assert score.early == 1


def run(*arguments):
    command = [sys.executable, "-m", "lrsweep.detector_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_the_table_and_saves_it(folder, tmp_path):
    done = run(folder, "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    head, rule, *lines = done.stdout.splitlines()
    assert "spiking (1)" in head
    assert "false alarm: data outliers (1)" in head
    assert set(rule) <= set("|:- ")
    assert len(lines) == 8
    assert lines[-1].startswith("| lrsweep | 1 | 2 | 0 | 0 | 1 | 2 | ")
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert [score["rule"] for score in saved["scores"]][-1] == "lrsweep"
    assert saved["scores"][-1]["files"]["a/data.csv"] is False


@pytest.mark.parametrize("where", ["nowhere", ""])
def test_a_folder_without_labels_is_one_clear_line(where, tmp_path):
    done = run(tmp_path / where)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no labels.csv in ")
    assert "CURVES=" in line


def test_a_missing_file_and_a_missing_column_are_named(folder):
    (folder / "a" / "healthy.csv").unlink()
    with pytest.raises(UserError, match=r"healthy\.csv"):
        read_curves(folder)
    (folder / "a" / "healthy.csv").write_text("step,train_loss\n1,3.0\n")
    with pytest.raises(UserError, match="loss"):
        read_curves(folder)
