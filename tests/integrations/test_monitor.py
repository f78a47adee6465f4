"""The monitor by itself, in one process on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrsweep.detect import DetectorConfig, DivergenceDetector, scan
from lrsweep.errors import UserError
from lrsweep.integrations import Action, DivergenceError, StabilityMonitor
from lrsweep.integrations.monitor import VERDICT_CODES
from tests.integrations.tiny import DIVERGING_LR, NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd

NAN = math.nan
LEAP = [3.0] * 40 + [9.0] * 40
LOSSES = st.lists(st.floats(0, 20, width=32) | st.sampled_from([NAN, math.inf]) | st.none(), min_size=1, max_size=80)


def train(lr: float, monitor: StabilityMonitor | None, steps: int = 80) -> list[float]:
    """The losses of a plain loop, in order."""
    model, losses = network(), []
    optimizer = sgd(model, lr)
    for step, batch in enumerate(batches(steps), 1):
        loss = loss_of(model, batch)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip_at(lr))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if monitor is not None:
            monitor.update(step, loss, grad_norm)
            if monitor.should_stop:
                break
    return losses


def feed(monitor: StabilityMonitor, losses: list[float]) -> StabilityMonitor:
    """Gives them one by one."""
    for step, loss in enumerate(losses):
        monitor.update(step, loss)
    return monitor


def block(losses: list[float], *, error: Exception | None = None) -> None:
    """A ``with`` block that is given ``losses`` and ends as it should, or with an error of its own."""
    with StabilityMonitor(action="raise") as monitor:
        feed(monitor, losses)
        if error is not None:
            raise error


@given(LOSSES)
@settings(max_examples=60)
def test_it_judges_as_the_detector_does(losses):
    monitor, detector = StabilityMonitor(), DivergenceDetector()
    for step, loss in enumerate(losses):
        given = None if loss is None else torch.tensor(loss)
        assert monitor.update(step, given, 1.0) == detector.update(step, loss, 1.0)
    assert monitor.finish() == detector.finish()


@given(LOSSES, st.integers(0, 80))
@settings(max_examples=40)
def test_one_that_is_restored_goes_on_as_the_unbroken_one(losses, cut):
    unbroken, broken = StabilityMonitor(), StabilityMonitor()
    for step, loss in enumerate(losses):
        if step == cut:
            state = json.dumps(broken.state_dict(), allow_nan=False)
            broken = StabilityMonitor()
            broken.load_state_dict(json.loads(state))
        assert broken.update(step, loss) == unbroken.update(step, loss)
    assert (broken.finish(), broken.events) == (unbroken.finish(), unbroken.events)
    assert broken.metrics()["lrsweep/nonfinite"] == unbroken.metrics()["lrsweep/nonfinite"]


@pytest.mark.parametrize(("lr", "kind"), [(DIVERGING_LR, "diverged"), (NONFINITE_LR, "nonfinite")])
def test_a_loop_ends_within_30_steps_of_the_onset(lr, kind):
    monitor = StabilityMonitor(action="stop")
    losses = train(lr, monitor)
    assert monitor.verdict.kind == kind
    assert monitor.verdict.onset is not None
    assert len(losses) - monitor.verdict.onset < 30
    if kind == "nonfinite":
        assert not math.isfinite(losses[monitor.verdict.onset - 1])


def test_a_watched_loop_has_bitwise_the_losses_of_an_unwatched_one():
    monitor = StabilityMonitor(action="raise")
    assert train(SANE_LR, monitor) == train(SANE_LR, None)
    assert monitor.finish().kind == "stable"


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches(judged):
    monitor = StabilityMonitor()
    monitor.update(1, [torch.tensor(1.0), torch.tensor(4.0, dtype=torch.bfloat16)])
    monitor.update(2, [2.0, 3])
    monitor.update(3, [torch.tensor(1.0), torch.tensor(NAN)])
    monitor.update(4, [])
    assert [loss for _, loss, _ in judged[:2]] == [2.5, 2.5]
    assert math.isnan(judged[2][1])
    assert judged[3][1] is None


def test_anything_that_is_one_number_is_a_loss(judged):
    monitor, tensor = StabilityMonitor(), torch.full((1, 1), 2.0, requires_grad=True)
    for step, loss in enumerate([2, 2.0, np.float32(2), np.array(2.0), tensor, tensor.bfloat16(), tensor.double()]):
        monitor.update(step, loss)
    assert [loss for _, loss, _ in judged] == [2.0] * 7


def test_a_loss_that_is_not_one_number_is_the_users_mistake():
    with pytest.raises(UserError, match="2 elements"):
        StabilityMonitor().update(1, torch.zeros(2))


def test_a_buffer_that_the_next_step_overwrites_was_read_before(judged):
    monitor, loss = StabilityMonitor(), torch.tensor(1.0)
    monitor.update(1, loss)
    loss.fill_(NAN)
    monitor.finish()
    assert judged == [(1, 1.0, None)]


def test_signals_reach_the_detector(monkeypatch):
    seen = []
    monkeypatch.setattr(DivergenceDetector, "update", lambda *given, signals: seen.append((*given[1:], signals)))
    StabilityMonitor().update(7, 2.0, signals={"logit_max": torch.tensor(5.0), "loss": 1.0})
    assert seen == [(7, 2.0, None, {"logit_max": 5.0})]


@pytest.mark.parametrize("losses", [LEAP, [3.0] * 5 + [NAN] * 5])
def test_raise_names_verdict_step_and_reason(losses):
    verdict = feed(StabilityMonitor(), losses).verdict
    monitor = StabilityMonitor(action="raise")
    with pytest.raises(DivergenceError) as caught:
        feed(monitor, losses)
    assert caught.value.verdict == verdict
    assert str(caught.value).startswith(f"{verdict.kind} at step {verdict.step}, since step {verdict.onset}: ")
    assert str(caught.value).endswith(verdict.reason)
    with pytest.raises(DivergenceError):  # and again, for one who caught it and went on
        monitor.update(99, 3.0)


def test_log_neither_stops_nor_raises_and_warns_once(caplog):
    monitor = feed(StabilityMonitor(action="log"), LEAP)
    monitor.finish()
    assert monitor.verdict.kind == "diverged"
    assert not monitor.should_stop
    assert [record.getMessage().split(" at ")[0] for record in caplog.records] == ["lrsweep: diverged"]


def test_an_unknown_action_is_the_users_mistake():
    with pytest.raises(UserError, match=r"'abort'.*log, stop, raise"):
        StabilityMonitor(action="abort")


def test_the_end_of_the_block_judges_how_the_curve_ended():
    with pytest.raises(DivergenceError, match="nonfinite"):
        block([3.0] * 20 + [NAN])
    with pytest.raises(KeyError):
        block([3.0] * 20 + [NAN], error=KeyError())  # not covered up


def test_stalled_is_told_at_the_end_and_ends_nothing(caplog):
    with StabilityMonitor(action="raise", config=DetectorConfig(stall_level=2.0)) as monitor:
        feed(monitor, [3.0] * 50)
    assert monitor.verdict.kind == "stalled"
    assert "stalled at step 49: " in caplog.text


def test_a_monitor_that_was_given_no_loss_says_so(caplog):
    with StabilityMonitor() as monitor:
        monitor.update(1, None)
    assert "no loss" in caplog.text


def test_metrics_are_those_of_the_table():
    logged: list[tuple[int, dict[str, float]]] = []
    monitor = StabilityMonitor(log=lambda metrics, step: logged.append((step, metrics)), log_every=10)
    losses = [3.0] * 40 + [4.0] + [3.0] * 10 + [4.0, 9.0, 9.0] + [3.0] * 10 + [NAN]
    kinds = [event.kind for event in feed(monitor, losses).events]
    assert {"spike", "outlier"} == set(kinds)
    metrics = monitor.metrics()
    assert math.isnan(metrics.pop("lrsweep/loss"))
    assert metrics == {
        "lrsweep/verdict": 0.0,
        "lrsweep/spikes": kinds.count("spike"),
        "lrsweep/outliers": kinds.count("outlier"),
        "lrsweep/nonfinite": 1.0,
    }
    assert [step for step, _ in logged] == [0, 10, 20, 30, 40, 50, 60]
    assert all(isinstance(value, float) for _, values in logged for value in values.values())
    assert VERDICT_CODES == {"stable": 0.0, "diverged": 1.0, "nonfinite": 2.0, "stalled": 3.0}
    for key in ("lrsweep/loss", *metrics):
        assert f"``{key}``" in (StabilityMonitor.__doc__ or "")


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_weights_that_are_not_finite_are_not_saved(bad, caplog):
    model, monitor = network(), StabilityMonitor()
    assert monitor.may_save(model)
    with torch.no_grad():
        model[3].bias[5] = bad
    assert not monitor.may_save(model)
    assert "not all finite" in caplog.text


def test_a_run_about_to_be_judged_diverged_is_not_saved_unless_only_logged():
    told = scan(range(len(LEAP)), LEAP).verdict.step
    assert told is not None
    model = network()
    allowed = {}
    for action in get_args(Action):
        monitor = feed(StabilityMonitor(action=action), LEAP[:told])
        assert not monitor.verdict.unstable
        allowed[action] = monitor.may_save(model)
    assert allowed == {"log": True, "stop": False, "raise": False}


ABSENT = [
    ("transformers", ["transformers"], "pip install 'lrsweep[transformers]'"),
    ("lightning", ["lightning", "pytorch_lightning"], "pip install 'lrsweep[lightning]'"),
    ("fabric", ["lightning", "lightning_fabric"], "pip install 'lrsweep[lightning]'"),
    ("accelerate", ["accelerate"], "pip install 'lrsweep[accelerate]'"),
    ("composer", ["composer"], "composer (mosaicml)"),
    ("olmo_core", ["olmo_core"], "pip install 'lrsweep[olmo-core]'"),
    ("megatron", ["megatron"], "Megatron-LM"),
]


def test_the_package_imports_no_trainer_and_a_missing_one_names_its_extra(root: Path):
    code = f"""
import importlib, sys, lrsweep.integrations
absent = {[(module, packages) for module, packages, _ in ABSENT]}
assert not [p for _, packages in absent for p in packages if p in sys.modules]
for module, packages in absent:
    sys.modules.update(dict.fromkeys(packages))
    try:
        imported = importlib.import_module("lrsweep.integrations." + module)
        imported.watch()  # of Megatron-LM, which is imported when it is watched
    except ImportError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    for line, (_, _, remedy) in zip(run.stdout.splitlines(), ABSENT, strict=True):
        assert remedy in line
    declared = (root / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("transformers", "lightning", "accelerate", "torchtitan", "olmo-core"):
        assert f"\n{extra} = [" in declared
