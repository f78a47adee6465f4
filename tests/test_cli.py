"""The command line: help, exit codes, one clear line for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lrsweep as package
from lrsweep.schemes import all_schemes
from tests.commands import QUICK, command, lrsweep

SWEEP = ("sweep", "--arch", "preln", "--lrs", "1e-3", "--seeds", "1", *QUICK, "--local")


def test_version(tmp_path: Path) -> None:
    assert lrsweep("--version", cwd=tmp_path).stdout == f"lrsweep {package.__version__}\n"


@pytest.mark.parametrize(
    "words", [(), ("sweep",), ("train",), ("report",), ("explain",), ("schemes",), ("doctor",), ("bench",)]
)
def test_help_needs_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lrsweep.cli import main\n"
        f"try:\n    main([*{words!r}, '--help'])\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'ray', 'pandas', 'matplotlib', 'pyarrow', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: lrsweep" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*SWEEP, "--arch", "qkvnrm"), "--arch: unknown scheme 'qkvnrm'; known, nearest first: qkv_norm"),
        ((*SWEEP, "--size", "11m"), "--size: unknown size '11m'; known, nearest first: 10m"),
        ((*SWEEP, "--lrs", "0"), "--lrs must be positive finite numbers, got 0"),
        ((*SWEEP, "--lrs", "nan"), "--lrs must be positive finite numbers, got nan"),
        ((*SWEEP, "--lrs"), "--lrs is empty"),
        ((*SWEEP, "--data", "none.txt"), "none.txt"),
        ((*SWEEP, "--data", "empty.txt"), "empty.txt"),
        ((*SWEEP, "--data", "binary.dat"), "binary.dat"),
        ((*SWEEP, "--data", "short.txt"), "short.txt"),
        ((*SWEEP, "--config", "none.toml"), "--config none.toml"),
        ((*SWEEP, "--config", "bad.toml"), "unknown key 'archs'; nearest known: arch"),
        ((*SWEEP, "--out", "short.txt"), "is a file"),
        ((*SWEEP, "--batch-size", "60000", "--micro-batch", "60000"), "GiB free; lower --jobs or --micro-batch"),
        ((*SWEEP, "--micro-batch", "3"), "--micro-batch 3 must divide --batch-size 2"),
        (("train", "--arch", "preln", *QUICK), "--lr is missing"),
        (("train", "--arch", "preln", "qknorm", "--lr", "1e-3", *QUICK), "train runs one trial"),
        (("report", "nowhere"), "is not a result folder"),
        (("report", "nowhere", "--out", "short.txt"), "is a file"),
        (("schemes", "qk_nrom"), "unknown scheme 'qk_nrom'"),
    ],
)
def test_mistake_is_one_line_exit_2_and_nothing_written(words: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.dat").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "short.txt").write_text("too short to train on")
    (tmp_path / "bad.toml").write_text('archs = ["preln"]')
    before = sorted(p.name for p in tmp_path.iterdir())
    result = lrsweep(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("swep",), "sweep"), (("sweep", "--arhc", "preln"), "--arch"), (("sweep", "--seeds", "1.5"), "--seeds")],
)
def test_mistyped_flag_is_exit_2_and_names_what_was_meant(
    words: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    result = lrsweep(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = lrsweep(*SWEEP, cwd=tmp_path)
    tmp_path.chmod(0o700)
    assert result.returncode == 2
    assert "no permission to write" in result.stderr


def test_flags_go_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('arch = ["qknorm"]\nlrs = [1e-3, 1e-2]\nsteps = 11\n')
    result = lrsweep("sweep", "--config", "c.toml", "--lrs", "3e-3", "--device", "cpu", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "qknorm on gpt, size 0.2m: 2 trials" in result.stdout  # two seeds of the preset
    assert "LRs  0.003;" in result.stdout
    assert "11 steps of 1,024 tokens" in result.stdout


def test_schemes_lists_every_row_and_one_in_full(tmp_path: Path) -> None:
    table = lrsweep("schemes", cwd=tmp_path).stdout
    assert all(scheme.name in table for scheme in all_schemes())
    one = lrsweep("schemes", "QKV-norm", cwd=tmp_path).stdout
    assert "attn_pre_norm" in one
    assert "preln: True" in one


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    result = lrsweep("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "torch" in result.stdout


def test_train_runs_one_trial_and_records_it_only_if_asked(tmp_path: Path) -> None:
    words = ("train", "--arch", "qknorm_cap", "--lr", "1e-2", "--seed", "3", *QUICK)
    result = lrsweep(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "held-out loss" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert lrsweep(*words, "--out", "out", cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "out" / "steps").iterdir())) == 1


def test_report_is_made_anew_with_another_epsilon(tmp_path: Path) -> None:
    assert lrsweep(*SWEEP, "--out", "out", cwd=tmp_path).returncode == 4
    page = tmp_path / "out" / "report" / "index.html"
    page.unlink()
    result = lrsweep("report", "out", "--epsilon", "1.5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert page.exists()
    assert ",1.5," in (tmp_path / "out" / "frontier.csv").read_text()


def test_a_table_of_trials_alone_is_reported_elsewhere(tmp_path: Path, root: Path) -> None:
    folder = root / "results" / "reference" / "rybakov-three-10m"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = lrsweep("report", str(folder), cwd=tmp_path)
    assert refused.returncode == 2
    assert "--out FOLDER" in refused.stderr
    result = lrsweep("report", str(folder), "--epsilon", "1.5", "--out", "there", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "there" / "report" / "index.html").exists()
    assert ",1.5," in (tmp_path / "there" / "frontier.csv").read_text()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_report_replaces_no_other_sweep_s(tmp_path: Path, root: Path) -> None:
    reference = root / "results" / "reference"
    (tmp_path / "manifest.json").write_text("{}")
    result = lrsweep("report", str(reference / "rybakov-three-10m"), "--out", ".", cwd=tmp_path)
    assert result.returncode == 2
    assert "is a result folder itself" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(command("schemes"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
