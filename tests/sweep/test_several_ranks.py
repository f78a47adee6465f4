"""A trial on two processes: the same sweep as on one, resumed, with a rank killed, with a rank at fault, refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lrsweep.config import SweepConfig, read_config_file
from lrsweep.corpus import Corpus
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.machine import memory_needed
from lrsweep.sweep.plan import check_gpus_per_trial, make_plan
from lrsweep.sweep.ray_executor import Workers, run_ray
from lrsweep.sweep.run import command_for
from tests.commands import lrsweep, sweep_under_way, wait_for, whole_trials
from tests.sweep.test_run import LONG

pytestmark = pytest.mark.xdist_group("ray")

CONFIG = SweepConfig(arch=("preln",), lrs=(1e-3,), seeds=1, steps=25, batch_size=2, device="cpu")
GRID = ("--arch", "preln", "--lrs", "1e-3", "1e-2", "1e6", "--seeds", "1", "--device", "cpu")
TWO = (*GRID, *LONG, "--out", "out", "--gpus-per-trial", "2")
RANKS = "(Peer|ResourceTrainable|Actor)"
"""What Ray calls the ranks' workers; rank 0 is Actor between two steps."""


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose trials ran on two processes each."""
    folder = tmp_path_factory.mktemp("two")
    result = lrsweep("sweep", *TWO, cwd=folder)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "CPU, 1 trial at a time, each on 2 processes" in result.stdout
    return folder / "out"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The same sweep, under way: at least one trial finished, at least one not; whatever it started ends with it."""
    with sweep_under_way(tmp_path, *TWO, "--jobs", "1") as process:
        yield process


def workers_of(process: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """Ray's workers that run actors of this class, a regular expression, now."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [p for p in family if re.match(f"ray::{kind}", " ".join(p.cmdline()))]


def verdicts(out: Path) -> dict[str, tuple[str, int]]:
    """Verdict and steps of each trial."""
    return {trial: (row.verdict, row.steps) for trial, row in ResultStore(out).rows().items()}


def same_losses(out: Path, on_two: Path) -> None:
    """Every trial of both folders, losses and all, but for the clock; two processes repeat themselves bitwise."""
    ours, theirs = ResultStore(out), ResultStore(on_two)
    assert verdicts(out) == verdicts(on_two)
    for trial in verdicts(out):
        np.testing.assert_array_equal(ours.steps(trial)["loss"], theirs.steps(trial)["loss"])


def test_two_processes_train_as_one_does(on_two: Path, tmp_path: Path) -> None:
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", "--local", cwd=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    one, two = ResultStore(tmp_path / "out"), ResultStore(on_two)
    # The same trials by name: how many GPUs train one is no part of its identity.
    assert {t: v for t, (v, _) in verdicts(tmp_path / "out").items()} == {
        t: v for t, (v, _) in verdicts(on_two).items()
    }
    for trial, row in one.rows().items():
        if row.lr > 1:
            continue  # chaotic from the first steps on
        losses = [store.steps(trial)["loss"].to_numpy()[:10] for store in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        largest = [store.steps(trial)["logit_max"].to_numpy()[:10] for store in (one, two)]
        np.testing.assert_allclose(largest[1], largest[0], rtol=1e-3)
        assert two.rows()[trial].loss_init == pytest.approx(row.loss_init, rel=1e-6)
        assert two.rows()[trial].tokens == row.tokens
        assert two.rows()[trial].device == "cpu, 2 × 1 thread"


def test_it_is_recorded_and_freezes_nothing(on_two: Path) -> None:
    manifest = json.loads((on_two / "manifest.json").read_text())
    assert [run["gpus_per_trial"] for run in manifest["runs"]] == [2]
    assert not [name for name in manifest["frozen"] if "gpu" in name]
    before = whole_trials(on_two)
    result = lrsweep("sweep", *GRID, *LONG, "--out", "out", "--local", cwd=on_two.parent)
    assert "3 of 3 trials are finished" in result.stdout, result.stderr
    assert whole_trials(on_two) == before


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.full), pytest.param(signal.SIGKILL, id="kill-9")]
)
def test_an_interrupted_sweep_leaves_no_rank_and_is_resumed(
    running: subprocess.Popen[str], on_two: Path, tmp_path: Path, how: signal.Signals
) -> None:
    assert workers_of(running, "Peer")
    ranks = workers_of(running, RANKS)  # Rank 0 may outlive its peer and yet write their trial down.
    assert len(ranks) >= 2
    running.send_signal(how)
    running.communicate(timeout=120)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    finished = whole_trials(tmp_path / "out")
    assert 1 <= len(finished) < 3
    result = lrsweep("sweep", *TWO, cwd=tmp_path)
    assert f"{len(finished)} of 3 trials are finished" in result.stdout, result.stderr
    after = whole_trials(tmp_path / "out")
    assert {trial: after[trial] for trial in finished} == finished
    same_losses(tmp_path / "out", on_two)


@pytest.mark.parametrize("kind", ["Peer", pytest.param("ResourceTrainable", marks=pytest.mark.full)])
def test_a_killed_rank_is_made_good(running: subprocess.Popen[str], on_two: Path, tmp_path: Path, kind: str) -> None:
    wait_for(lambda: bool(workers_of(running, kind)))
    ranks = workers_of(running, RANKS)
    workers_of(running, kind)[0].kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive  # neither stays without the other
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    same_losses(tmp_path / "out", on_two)


class Changing(dict[str, Corpus]):
    """Corpora that become the next of ``stages`` each time they are passed on: to rank 0, and from there to a peer."""

    def __init__(self, *stages: dict[str, Corpus]) -> None:
        super().__init__(stages[0])
        self.stages = stages

    def __reduce__(self) -> tuple[type[Changing], tuple[dict[str, Corpus], ...]]:
        return Changing, self.stages[1:] or self.stages


@pytest.mark.parametrize(
    ("lead", "peer", "reason"),
    [
        pytest.param(
            True,
            False,
            r"its worker was lost 3 times \(rank 1 of 2, peer of process \d+: KeyError: '0.2m'\)",
            id="of a peer",
            marks=pytest.mark.full,
        ),
        pytest.param(False, True, "KeyError: '0.2m'", id="of rank 0", marks=pytest.mark.full),
        pytest.param(False, False, "KeyError: '0.2m'", id="of all"),
    ],
)
def test_a_fault_of_the_program_ends_the_trial_and_says_whose(
    lead: bool, peer: bool, reason: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root))
    plan = make_plan(replace(CONFIG, lrs=(1e-3,) if lead else (1e-3, 1e-2), out=str(tmp_path)))
    corpora = Changing(plan.corpora, plan.corpora if lead else {}, plan.corpora if peer else {})
    store, ended = ResultStore(tmp_path), []
    run_ray(
        plan.specs,
        corpora,
        store,
        lambda _, progress: ended.append(progress.row) if progress.row else None,
        Workers(device="cpu", together=2),
    )
    assert [row.verdict for row in ended] == ["error"] * len(plan.specs)
    assert all(re.fullmatch(reason, row.reason) for row in ended), ended
    assert {row.reason for row in store.rows().values()} == {row.reason for row in ended}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gpus_per_trial": 0}, "--gpus-per-trial must be at least 1, got 0"),
        ({"gpus_per_trial": 2, "local": True}, "--gpus-per-trial 2 needs Ray; leave out --local"),
        (
            {"gpus_per_trial": 2, "batch_size": 3},
            "--gpus-per-trial 2 does not divide --batch-size 3; change one of them",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        make_plan(replace(CONFIG, out=str(tmp_path / "out"), **flags))
    assert str(refused.value) == message
    assert not (tmp_path / "out").exists()


def test_on_gpus_there_must_be_that_many_and_whole_ones() -> None:
    config = replace(CONFIG, gpus_per_trial=64, batch_size=64)
    n_gpus = torch.cuda.device_count()
    with pytest.raises(
        UserError, match=rf"^--gpus-per-trial 64: this machine has {n_gpus}; lower it, or name a cluster"
    ):
        check_gpus_per_trial(config, "cuda", [64])
    with pytest.raises(
        UserError, match=r"^--gpus-per-trial 64 takes whole GPUs, --jobs 2 shares them; leave out --jobs"
    ):
        check_gpus_per_trial(replace(config, jobs=2), "cuda", [64])
    check_gpus_per_trial(replace(config, ray_address="auto"), "cuda", [64])
    check_gpus_per_trial(replace(config, jobs=2), "cpu", [64])
    check_gpus_per_trial(replace(config, gpus_per_trial=1, jobs=2), "cuda", [3])


def test_train_refers_to_sweep(tmp_path: Path) -> None:
    result = lrsweep("train", "--arch", "preln", "--lr", "1e-3", "--gpus-per-trial", "2", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: train runs in this process, --gpus-per-trial 2 needs Ray; use sweep\n"


def test_a_file_can_say_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text('arch = "preln"\ngpus_per_trial = 2\n')
    assert read_config_file(tmp_path / "sweep.toml")["gpus_per_trial"] == 2
    assert command_for(replace(CONFIG, gpus_per_trial=2)).endswith("--gpus-per-trial 2")
    assert "gpus" not in command_for(CONFIG)


def test_what_tune_reserves() -> None:
    assert Workers(device="cpu", jobs=3, together=2).local_cpus() == 6
    together = Workers(device="cuda", together=4).resources()
    assert together.bundles == [{"CPU": 1.0, "GPU": 1.0}] * 4
    assert together.strategy == "PACK"
    assert Workers(device="cuda", jobs=2).resources() == {"cpu": 1.0, "gpu": 0.5}


def test_a_process_needs_memory_for_its_share(tmp_path: Path) -> None:
    (spec,) = make_plan(replace(CONFIG, out=str(tmp_path), batch_size=4)).specs
    one, two, four = (memory_needed(spec, n) for n in (1, 2, 4))
    assert one - two == 2 * (two - four) > 0
    assert memory_needed(replace(spec, train=replace(spec.train, batch_size=2))) == two
