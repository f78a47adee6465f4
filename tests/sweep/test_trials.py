"""Trials one after another in one process, and faults of the program."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lrsweep.config import SweepConfig
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.local import TrialRunner
from lrsweep.sweep.machine import fit_memory, memory_needed
from lrsweep.sweep.plan import Plan, make_plan
from lrsweep.sweep.run import command_for, remaining
from lrsweep.train import Engine, run_trial


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    config = SweepConfig(
        arch=("preln", "qknorm"),
        lrs=(1e-3, 1e-2),
        seeds=1,
        steps=25,
        batch_size=2,
        device="cpu",
        out=str(tmp_path / "o"),
    )
    return make_plan(config)


def test_a_trial_does_not_depend_on_what_its_worker_ran_before(plan: Plan, tmp_path: Path) -> None:
    """A second trial in a warm engine gives bitwise the row of the same trial alone."""
    runner = TrialRunner(plan.corpora, ResultStore(tmp_path / "a"))
    warm = {spec.trial: list(runner.run(spec))[-1].row for spec in plan.specs}
    for spec in plan.specs:
        alone = list(run_trial(spec, plan.corpora[spec.size]))[-1].row
        found = warm[spec.trial]
        assert found is not None
        assert alone is not None
        assert replace(found, wall_s=0.0) == replace(alone, wall_s=0.0)


def test_what_a_seed_begins_with_is_evaluated_once(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two schemes at two LRs: the initial loss of each scheme once, the final loss of each trial."""
    calls: list[float] = []
    evaluate = Engine.evaluate

    def counted(self: Engine, windows_WxT: NDArray[np.integer]) -> float:
        calls.append(evaluate(self, windows_WxT))
        return calls[-1]

    monkeypatch.setattr(Engine, "evaluate", counted)
    runner = TrialRunner(plan.corpora, ResultStore(tmp_path / "a"))
    for spec in plan.specs:
        list(runner.run(spec))
    rows = ResultStore(tmp_path / "a").rows()
    (a, b, c, d) = (rows[spec.trial] for spec in plan.specs)
    assert calls == [a.loss_init, a.loss_final, b.loss_final, c.loss_init, c.loss_final, d.loss_final]
    assert a.loss_init == b.loss_init
    assert c.loss_init == d.loss_init


def test_a_compiled_engine_is_gone_before_the_next_is_built(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU two of them may not fit, and the collector of cycles may come too late."""
    models: list[weakref.ref[object]] = []
    left: list[int] = []

    def compiled(*args: object, **kwargs: object) -> Engine:
        left.append(sum(model() is not None for model in models))
        engine = Engine(*args, **kwargs)  # type: ignore[arg-type]
        engine._compile("aot_eager")
        models.append(weakref.ref(engine.model))
        return engine

    monkeypatch.setattr("lrsweep.sweep.local.Engine", compiled)
    runner = TrialRunner(plan.corpora, ResultStore(tmp_path / "a"))
    gc.disable()
    try:
        for arch in ("preln", "qknorm"):
            list(runner.run(next(spec for spec in plan.specs if spec.scheme.name == arch)))
    finally:
        gc.enable()
    assert left == [0, 0]


def test_looking_ahead_changes_nothing_that_is_recorded(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, an interval ahead: bitwise the same files, also of a trial that ends early and of the one after."""
    wild, calm = (replace(plan.specs[0], lr=lr, train=replace(plan.specs[0].train, steps=90)) for lr in (30.0, 1e-3))
    stores = [ResultStore(tmp_path / name) for name in ("a", "b")]
    for lookahead, store in enumerate(stores):
        monkeypatch.setattr(Engine, "lookahead", lookahead)
        runner = TrialRunner(plan.corpora, store)
        rows = [list(runner.run(spec))[-1].row for spec in (wild, calm)]
        assert [row is not None and row.steps < 90 for row in rows] == [True, False]
    for spec in (wild, calm):
        found, expected = (replace(store.rows()[spec.trial], wall_s=0.0) for store in stores)
        assert repr(found) == repr(expected)  # NaN is not equal to itself.
        for kind in ("steps", "layers"):
            files = (pd.read_parquet(store.root / kind / f"{spec.trial}.parquet") for store in stores)
            pd.testing.assert_frame_equal(*files)


def test_progress_is_reported_once_an_interval(plan: Plan) -> None:
    spec = plan.specs[0]
    reports = list(run_trial(spec, plan.corpora[spec.size]))
    assert [r.step for r in reports] == [20, 25]
    assert [r.row is None for r in reports] == [True, False]


def test_a_fault_of_the_program_is_recorded_and_run_again_next_time(plan: Plan, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "a")
    broken = TrialRunner({}, store)  # no corpus: a KeyError in mid-trial
    *_, last = broken.run(plan.specs[0])
    assert last.row is not None
    assert last.row.verdict == "error"
    assert last.row.reason == "KeyError: '0.2m'"
    assert math.isnan(last.row.loss_final)
    assert store.rows()[plan.specs[0].trial] == last.row or math.isnan(last.row.loss_init)
    assert remaining(plan, store.rows()) == list(plan.specs)
    list(TrialRunner(plan.corpora, store).run(plan.specs[0]))
    assert remaining(plan, store.rows()) == list(plan.specs[1:])


def test_memory_grows_with_what_takes_it(plan: Plan) -> None:
    spec = plan.specs[0]
    base = memory_needed(spec)
    assert memory_needed(replace(spec, train=replace(spec.train, batch_size=20))) > base
    assert memory_needed(replace(spec, shape=replace(spec.shape, vocab_size=5000))) > base
    n_params = 229_952
    assert base > 24 * n_params
    assert fit_memory(spec, 1) == spec
    whole = replace(spec, train=replace(spec.train, batch_size=2**24))
    cut = fit_memory(whole, 1)
    assert cut.trial == whole.trial, "how the batch is cut up is not part of a trial"
    micro = cut.train.micro_batch
    assert micro is not None
    assert 2**24 % micro == 0
    larger = replace(whole, train=replace(whole.train, micro_batch=2 * micro))
    assert memory_needed(cut) < memory_needed(larger) <= memory_needed(whole)
    with pytest.raises(
        UserError, match=r"--size 0\.2m: 1 trial\(s\) at a time need about .* lower --jobs or --micro-batch"
    ):
        fit_memory(replace(whole, train=replace(whole.train, micro_batch=2**24)), 1)


def test_command_for_round_trips_what_differs_from_the_defaults() -> None:
    config = SweepConfig(arch=("preln", "qknorm"), lrs=(1e-3, 0.3), seeds=2, local=True, out="a b")
    assert command_for(config) == "lrsweep sweep --arch preln qknorm --lrs 0.001 0.3 --seeds 2 --out 'a b' --local"
