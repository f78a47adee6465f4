"""Real runs of the worker and of the command at the smallest size, on a CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lrsweep.bench.command import Bench, run_bench
from lrsweep.bench.job import Job, JobError, System, Timing, batch_of, run_job
from lrsweep.bench.peers import PEERS, Peer
from lrsweep.config import find_size, mlp_width
from lrsweep.model import GPT
from lrsweep.schemes import find
from tests.commands import command, lrsweep

TINY = ("--size", "0.2m", "--rounds", "2")
INSTALLED = [pytest.param(n, marks=pytest.mark.skipif(find_spec(n) is None, reason=f"needs {n}")) for n in PEERS]
gpu_decides = pytest.mark.skipif(torch.cuda.is_available(), reason="states what a CPU gives")


def job(system: System, arch: str, body: str, size: str = "0.2m") -> Job:
    return Job(system=system, arch=arch, body=body, size=size, device="cpu", rounds=2)


@pytest.mark.parametrize(
    ("size", "expected"), [("10m", (64, 64)), ("135m", (32, 32)), ("350m", (64, 16)), ("830m", (32, 8))]
)
def test_the_papers_batches_are_cut_for_everybody(size: str, expected: tuple[int, int]) -> None:
    assert batch_of(find_size(size)) == expected


@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peer_takes_the_same_step_in_micro_batches(peer: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over parts of 2 sequences is the loss of all 8, and so is the step: the losses after it agree too."""
    losses = []
    for micro in (8, 2):
        monkeypatch.setattr("lrsweep.bench.peers.batch_of", lambda preset, micro=micro: (8, micro))
        torch.manual_seed(0)
        one = Peer(PEERS[peer](), find_size("0.2m"), "cpu")
        losses.append([one.step().item() for _ in range(3)])
    assert losses[0][2] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_worker_measures_our_step() -> None:
    found = run_job(job("lrsweep", "qknorm+zloss", "gpt"))
    assert (found.system, found.scheme, found.body, found.size) == ("lrsweep", "qknorm+zloss", "gpt", "0.2m")
    assert found.n_params == GPT(find("qknorm"), "gpt", find_size("0.2m").shape).n_params()
    assert set(found.step_ms) == {"bare", "norms", "all"}
    assert set(found.ratios) == {"norms/bare", "all/bare"}
    assert all(r.low <= r.median <= r.high for r in found.ratios.values())
    assert found.tokens_per_s == pytest.approx(8 * 128 / (found.step_ms["all"] / 1e3))
    assert found.next_trial_s is not None
    assert found.mfu is found.allocated_gib is found.reserved_gib is None


@pytest.mark.parametrize("peer", INSTALLED)
def test_worker_measures_a_peer_of_our_shape(peer: System) -> None:
    found = run_job(job(peer, "preln", "llama"))
    assert found.system == peer
    assert found.n_params == GPT(find("preln"), "llama", find_size("0.2m").shape).n_params()
    assert set(found.step_ms) == {"bare"}
    assert found.tokens_per_s == pytest.approx(8 * 128 / (found.step_ms["bare"] / 1e3))
    assert found.ratios == {}


@pytest.mark.parametrize("peer", INSTALLED)
@pytest.mark.parametrize("size", ["10m", "135m", "780m"])
def test_a_peer_has_as_many_parameters_as_we_at_every_size(peer: System, size: str) -> None:
    shape = find_size(size).shape
    with torch.device("meta"):
        theirs, _ = PEERS[peer]()(shape, mlp_width(find("preln"), "llama", shape.d_model))
        ours = GPT(find("preln"), "llama", shape)
    assert sum(p.numel() for p in theirs.parameters()) == ours.n_params()


@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peers_step_trains(peer: System) -> None:
    """From about ln V down on the batch that it sees over and over."""
    torch.manual_seed(0)
    trainee = Peer(PEERS[peer](), find_size("0.2m"), "cpu")
    assert {p.dtype for p in trainee.model.parameters()} == {torch.float32}
    losses = [trainee.step().item() for _ in range(20)]
    assert losses[0] == pytest.approx(5.55, abs=0.3)
    assert losses[-1] < losses[0] - 0.05


def test_a_worker_that_fails_leaves_its_last_words() -> None:
    with pytest.raises(JobError, match=r"^UserError: --size: unknown size '11m'; known, nearest first: 10m"):
        run_job(job("lrsweep", "preln", "gpt", size="11m"))


def test_the_worker_prints_one_line_of_json(tmp_path: Path) -> None:
    text = json.dumps(
        {"system": "lrsweep", "arch": "preln", "body": "gpt", "size": "0.2m", "device": "cpu", "rounds": 2}
    )
    result = subprocess.run(
        [sys.executable, "-m", "lrsweep.bench", text], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (line,) = result.stdout.splitlines()
    assert set(json.loads(line)) == {field.name for field in fields(Timing)}


@gpu_decides
def test_command_with_peers_prints_tables_and_saves_all_of_it(tmp_path: Path) -> None:
    words = ("--arch", "preln", "qknorm", "--body", "llama", "--peers", "--out", "new/b.json")
    result = lrsweep("bench", *TINY, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    missing = [name for name in PEERS if find_spec(name) is None]
    lines = [f"{name} left out: it is not installed (pip install {name})" for name in missing]
    assert result.stdout.splitlines()[: len(lines)] == lines
    assert "norms/bare" in result.stdout
    assert "lrsweep with all probes over the best peer without" in result.stdout

    found = json.loads((tmp_path / "new" / "b.json").read_text())
    assert set(found) == {"command", "git_sha", "hardware", "versions", "rounds", "timings", "peers", "left_out"}
    assert found["command"].endswith(" ".join(words))
    assert found["rounds"] == 2
    assert found["left_out"] == lines
    names = {field.name for field in fields(Timing)}
    assert [t["scheme"] for t in found["timings"]] == ["preln", "qknorm"]
    assert all(set(t) == names for t in found["timings"])
    (comparison,) = found["peers"]
    assert set(comparison) == {"size", "runs", "step_over_peer", "first_step_over_peer", "drift"}
    others = [name for name in PEERS if name not in missing]
    assert [run["system"] for run in comparison["runs"]] == ["lrsweep", *others, "lrsweep"]
    assert comparison["runs"][0] == found["timings"][0], "what was measured already is not measured again"
    assert all(set(run) == names for run in comparison["runs"])


def test_a_scheme_that_cannot_be_trained_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from lrsweep.schemes import Scheme, register\n"
        "register(Scheme(name='by_sgd', source='ours', formula='none', training=(('optimizer', 'sgd'),)))\n"
    )
    result = lrsweep("bench", *TINY, "--arch", "./mine.py:by_sgd", "preln", "--out", "b.json", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    line = "./mine.py:by_sgd 0.2m left out: UserError: optimizer must be one of adamw, stable_adamw, muon, got 'sgd'"
    assert line in result.stdout.splitlines()
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["left_out"] == [line]
    assert [t["scheme"] for t in found["timings"]] == ["preln"]


def test_an_interrupted_bench_keeps_what_it_has(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("bench", *TINY, "--size", "0.2m", "30m", "--arch", "preln", "--out", "b.json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not ((out := tmp_path / "b.json").exists() and '"scheme"' in out.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "norms/bare" in stdout
    assert [t["size"] for t in json.loads(out.read_text())["timings"]] == ["0.2m"]


def test_a_bench_interrupted_before_its_first_figure_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "add_scheme", interrupted)
    (tmp_path / "old.json").write_text("old")
    for name in ("old.json", "folder/new.json"):
        assert run_bench(["preln"], "gpt", [], rounds=None, peers=False, out=tmp_path / name) == 130
    assert (tmp_path / "old.json").read_text() == "old"
    assert not (tmp_path / "folder" / "new.json").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--peers",), "--peers compares Llama models, which --body gpt is not; add --body llama"),
        (("--arch", "prelm"), "--arch: unknown scheme 'prelm'; known, nearest first: preln"),
        (("--arch",), "--arch is empty"),
        (("--size", "11m"), "--size: unknown size '11m'; known, nearest first: 10m"),
        (("--body", "lama"), "--body: unknown body 'lama'; known, nearest first: llama"),
        (("--rounds", "1"), "--rounds must be at least 2, got 1"),
        (("--out", "."), "--out . is a folder; name a file"),
        (("--out", "/dev/null/b.json"), "--out /dev/null/b.json: "),
    ],
)
def test_mistake_is_one_line_before_anything_is_measured(words: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    result = lrsweep("bench", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {expected}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
