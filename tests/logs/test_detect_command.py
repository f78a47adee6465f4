"""``lrsweep detect`` as a user runs it: what it prints, its exit codes, its JSON, its figure, and its errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX import SummaryWriter

from lrsweep.cli import main
from lrsweep.detect import scan
from lrsweep.errors import DONE, UNSTABLE, USAGE
from tests.commands import command, lrsweep


def curve(steps: int = 200, *, jump_at: int = 10**9, spike_at: int = -10, nan_from: int = 10**9) -> list[float]:
    """A falling loss; far above it from ``jump_at`` on, for 8 steps from ``spike_at`` on, or NaN."""

    def loss(step: int) -> float:
        if step >= nan_from:
            return math.nan
        ripple = 0.02 * math.sin(9.0 * step * step)
        spike = 4.0 * 0.7 ** (step - spike_at) if 0 <= step - spike_at < 8 else 0.0
        return 2.5 + 3.0 * math.exp(-step / 40) + ripple + spike + (3.0 if step >= jump_at else 0.0)

    return [loss(step) for step in range(steps)]


STABLE, SPIKED, DIVERGED, NONFINITE = curve(), curve(spike_at=120), curve(jump_at=100), curve(nan_from=150)


def write(path: Path, losses: list[float]) -> str:
    path.write_text("step,loss\n" + "".join(f"{step},{loss!r}\n" for step, loss in enumerate(losses)))
    return path.name


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("losses", "kind", "code"),
    [
        (STABLE, "stable", DONE),
        (SPIKED, "stable", DONE),
        (DIVERGED, "diverged", UNSTABLE),
        (NONFINITE, "nonfinite", UNSTABLE),
    ],
)
def test_one_log(losses: list[float], kind: str, code: int, tmp_path: Path) -> None:
    result = lrsweep("detect", write(tmp_path / "run.csv", losses), cwd=tmp_path)
    assert result.returncode == code
    assert result.stderr == ""
    first, reason, *others = result.stdout.splitlines()
    found = scan(range(len(losses)), losses)
    assert found.verdict.kind == kind
    assert first.startswith(f"run.csv: {kind}")
    assert reason.strip() == found.verdict.reason
    assert any("200 points, steps 0 to 199" in line and "'loss'" in line for line in others)
    assert sum(line.lstrip().startswith("spike from step") for line in others) == len(found.spikes)


def test_json_has_the_keys_of_the_api_and_no_nan(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.csv", losses) for i, losses in enumerate((SPIKED, NONFINITE))]
    result = lrsweep("detect", *files, "--json", cwd=tmp_path)
    assert result.returncode == UNSTABLE
    for file, losses, line in zip(files, (SPIKED, NONFINITE), result.stdout.splitlines(), strict=True):
        found, printed = scan(range(len(losses)), losses), strict(line)
        assert printed["file"] == file
        assert printed["verdict"] == {
            name: getattr(found.verdict, name) for name in ("kind", "reason", "onset", "step")
        }
        assert printed["events"] == [
            {name: getattr(event, name) for name in ("kind", "onset", "peak", "end", "size")} for event in found.events
        ]
        assert printed["points"] == 200
        assert printed["nonfinite_points"] == sum(map(math.isnan, losses))
        assert (printed["format"], printed["columns"]["loss"]) == ("csv", "loss")
    assert scan(range(200), SPIKED).events


def test_standard_input(tmp_path: Path) -> None:
    log = "".join(f"iter {step}: loss {loss:.4f}, time 3.1ms\n" for step, loss in enumerate(DIVERGED))
    result = subprocess.run(
        command("detect", "-", "--json"), cwd=tmp_path, input=log.encode("utf-16"), capture_output=True, check=False
    )
    assert result.returncode == UNSTABLE
    assert strict(result.stdout.decode())["file"] == "-"


def test_settings_of_the_detector(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", DIVERGED)
    assert lrsweep("detect", file, "--margin", "9", cwd=tmp_path).returncode == DONE
    assert lrsweep("detect", file, "--grace-steps", "1000", cwd=tmp_path).returncode == DONE
    stalled = lrsweep("detect", write(tmp_path / "stable.csv", STABLE), "--stall-level", "1", cwd=tmp_path)
    assert stalled.returncode == UNSTABLE
    assert "stalled" in stalled.stdout


def test_several_logs_are_a_table_and_one_that_cannot_be_read_does_not_stop_the_rest(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.csv", STABLE), "missing.log", write(tmp_path / "b.csv", DIVERGED)]
    result = lrsweep("detect", *files, cwd=tmp_path)
    assert result.returncode == USAGE
    assert result.stderr == "error: missing.log: No such file or directory\n"
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1][:2] == ["a.csv", "stable"]
    assert rows[2][:2] == ["b.csv", "diverged"]
    assert any(line.startswith("b.csv: diverged: smoothed loss") for line in result.stdout.splitlines())
    assert lrsweep("detect", "a.csv", "b.csv", cwd=tmp_path).returncode == UNSTABLE


def test_a_folder_of_tensorboard_runs_is_a_row_each(tmp_path: Path) -> None:
    for name, losses in (("runs/a", STABLE), ("runs/b", DIVERGED)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step, loss in enumerate(losses):
                writer.add_scalar("train/loss", loss, step)
    result = lrsweep("detect", "runs", "--json", cwd=tmp_path)
    assert [strict(line)["verdict"]["kind"] for line in result.stdout.splitlines()] == ["stable", "diverged"]
    assert [strict(line)["file"] for line in result.stdout.splitlines()] == ["runs/a", "runs/b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "no log given"),
        (("missing.log",), "missing.log: No such file or directory"),
        (("empty.log",), "empty.log: the file is empty"),
        (("blank.log",), "blank.log: the file is empty"),
        (("junk.bin",), "junk.bin: a binary file"),
        (("prose.txt",), "prose.txt: no logged values found"),
        (("folder",), "folder: a folder without TensorBoard event files"),
        (("header.csv",), "header.csv: column 'loss' holds no number"),
        (("other.csv",), "other.csv: no column is called like a training loss (found: step, accuracy)"),
        (("other.csv", "--loss-key", "nll"), "--loss-key 'nll': no column of that name"),
        (("run.csv", "--step-key", "tokens"), "--step-key 'tokens': no column of that name"),
        (("run.csv", "--format", "parquet"), "run.csv: not a whole Parquet file"),
        (("run.csv", "--format", "json"), "run.csv: not valid JSON"),
        (("run.csv", "--margin", "0"), "--margin must be positive"),
        (("run.csv", "--plot", "a.jpg"), "--plot a.jpg must end in .svg, .pdf, .png"),
        (("run.csv", "--plot", "none/a.png"), "--plot none/a.png: there is no folder none"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.csv", STABLE)
    (tmp_path / "empty.log").write_bytes(b"")
    (tmp_path / "blank.log").write_bytes(b"\n  \n")
    (tmp_path / "junk.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "prose.txt").write_text("It was a dark and stormy night.\n")
    (tmp_path / "header.csv").write_text("step,loss\n")
    (tmp_path / "other.csv").write_text("step,accuracy\n1,0.5\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.log").write_text("step 1 loss 2.5\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_:
        main(["detect", *words])
    printed = capsys.readouterr()
    assert exit_.value.code == USAGE
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert expected in printed.err
    assert len(printed.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_no_permission_to_read(tmp_path: Path) -> None:
    file = tmp_path / write(tmp_path / "run.csv", STABLE)
    file.chmod(0)
    result = lrsweep("detect", file, cwd=tmp_path)
    assert result.returncode == USAGE
    assert result.stderr == f"error: {file}: Permission denied\n"


@pytest.mark.parametrize("words", [("detect", "run.csv"), ("detect", "run.log", "--json"), ("detect", "--help")])
def test_needs_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path / "run.csv", STABLE)
    (tmp_path / "run.log").write_text("step 1 loss 2.5\nstep 2 loss 2.4\n")
    code = (
        "import sys\n"
        "from lrsweep.cli import main\n"
        f"try:\n    main({list(words)!r})\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'ray', 'pandas', 'matplotlib', 'pyarrow', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("suffix", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot(suffix: str, head: bytes, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.csv", x) for i, x in enumerate((STABLE, SPIKED, DIVERGED, NONFINITE, curve(1)))]
    assert lrsweep("detect", *files, "--plot", f"out.{suffix}", cwd=tmp_path).returncode == UNSTABLE
    assert (tmp_path / f"out.{suffix}").read_bytes().startswith(head)


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    write(tmp_path / "run.csv", STABLE)
    process = subprocess.Popen(
        command("detect", "run.csv", "--json"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
