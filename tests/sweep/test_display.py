"""What a running sweep shows."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lrsweep.config import SweepConfig, TrialSpec
from lrsweep.sweep.display import Display, duration, eta, sparkline
from lrsweep.sweep.plan import make_plan
from lrsweep.train import Progress, error_row


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1.0], "▁"), ([0.0, 7.0], "▁█"), ([8.0, 4.0, 1.0], "█▄▁"), ([1.0, math.nan, 2.0, math.inf], "▁×█×")],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line


def test_sparkline_keeps_the_last_values() -> None:
    assert sparkline([100.0, *range(8)], width=8) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (math.inf, "?")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_eta() -> None:
    assert eta(25, 100, 10) == 30
    assert eta(0, 100, 10) == math.inf
    assert eta(100, 100, 10) == 0


@pytest.fixture
def specs(tmp_path: Path) -> tuple[TrialSpec, ...]:
    config = SweepConfig(
        arch=("preln",), lrs=(1e-3, 1e-2, 1.0), seeds=1, steps=40, device="cpu", out=str(tmp_path / "o")
    )
    return make_plan(config).specs


def ended(spec: TrialSpec, verdict: str, loss_final: float) -> Progress:
    row = replace(error_row(spec, "because"), verdict=verdict, loss_final=loss_final, steps=40, wall_s=1.0)
    return Progress(step=40, steps=40, loss=3.0, verdict=verdict, row=row)


def test_plain_lines_tell_degraded_from_stable_and_keep_low_lrs_out_of_it(specs: tuple[TrialSpec, ...]) -> None:
    out = io.StringIO()
    low, best, high = specs
    with Display(specs, n_finished=0, epsilon={"0.2m": 0.25}, console=Console(file=out)) as display:
        display(low, Progress(step=20, steps=40, loss=3.0, verdict="stable"))
        display(best, ended(best, "stable", 2.0))
        display(low, ended(low, "stable", 2.5))  # above the best, but its LR is below: undertrained
        display(high, ended(high, "stable", 2.3))
    lines = out.getvalue().splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "[1/3] preln lr 0.01 seed 0: stable, held-out loss 2.000 (1 s)",
        "[2/3] preln lr 0.001 seed 0: stable, held-out loss 2.500 (1 s)",
        "[3/3] preln lr 1 seed 0: degraded, held-out loss 2.300 (1 s)",
    ]
    assert lines[0].endswith("left")
    assert not lines[2].endswith("left")


def test_a_diverged_trial_says_why(specs: tuple[TrialSpec, ...]) -> None:
    out = io.StringIO()
    with Display(specs[:1], n_finished=5, epsilon={"0.2m": 0.25}, console=Console(file=out)) as display:
        display(specs[0], ended(specs[0], "diverged", math.nan))
    assert out.getvalue() == "[6/6] preln lr 0.001 seed 0: diverged at step 40: because\n"


def test_live_table_holds_every_running_trial(specs: tuple[TrialSpec, ...]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    display = Display(specs, n_finished=0, epsilon={"0.2m": 0.25}, console=console)
    for loss in (5.0, 4.0):
        display(specs[0], Progress(step=20 if loss == 5 else 39, steps=40, loss=loss, verdict="stable"))
    display(specs[2], ended(specs[2], "diverged", math.nan))
    with console.capture() as captured:
        console.print(display._render())
    text = captured.get()
    for word in ("preln", "0.001", "39/40", "4.000", "█▁", "running", "diverged", "1 of 3 trials done"):
        assert word in text, word
