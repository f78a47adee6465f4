"""Every example in docs/logs.md is read, and every command and snippet there runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from lrsweep.detect import scan
from lrsweep.logs import FORMATS, read_log
from lrsweep.logs.names import NAMES, words

PAGE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("log", blocks("log"))
def test_every_example_is_two_points_of_a_falling_loss(log: str, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(log)
    curve = read_log(tmp_path / "train.log")
    assert curve.format == "text"
    assert len(curve.steps) == 2
    assert curve.losses[0] > curve.losses[1]
    assert curve.notes == ()
    assert (curve.grad_norms is not None) == ("norm" in log)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f"step {step} | loss {3.5 - step / 100:.3f} | grad norm {1 + step % 3}" for step in range(50)]
    (tmp_path / "train.log").write_text("\n".join(lines))
    for name in ("seed0.csv", "seed1.csv"):
        (tmp_path / name).write_text("step,loss\n" + "".join(f"{step},{3.5 - step / 100}\n" for step in range(50)))
    with SummaryWriter(str(tmp_path / "runs" / "a")) as writer:
        for step in range(50):
            writer.add_scalar("train/loss", 3.5 - step / 100, step)
    return tmp_path


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_every_command_runs(line: str, folder: Path) -> None:
    command = line.split("  #")[0].replace("lrsweep", f"{shlex.quote(sys.executable)} -m lrsweep", 1)
    result = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "stable" in result.stdout


def test_the_snippet_runs(folder: Path) -> None:
    (snippet,) = blocks("python")
    result = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, check=False)
    curve = read_log(folder / "train.log")
    verdict = scan(curve.steps, curve.losses, curve.grad_norms).verdict
    assert result.stdout.startswith(f"{verdict.kind} {verdict.onset}"), result.stderr


def test_the_tables_name_every_format_and_only_names_that_are_known() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.split("## Formats")[1].split("###")[0], flags=re.M) == list(FORMATS)
    for role, label in (("step", "step"), ("loss", "loss"), ("grad_norm", "gradient norm")):
        (row,) = re.findall(rf"^\| {label} \| (.*?) \|$", PAGE, flags=re.M)
        assert {words(name) for name in re.findall(r"`(.+?)`", row.split(";")[0])} <= set(NAMES[role])
