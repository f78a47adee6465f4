"""Points in the order of training: resumed runs, steps that start anew in each epoch, one run in every format."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX import SummaryWriter

from lrsweep.errors import UserError
from lrsweep.logs import read_log
from tests.logs.reading import read, same


def text(steps: list[int], **columns: list[float]) -> str:
    rows = zip(steps, *columns.values(), strict=True)
    return "".join(
        f"step {step} " + " ".join(f"{name}: {value!r}" for name, value in zip(columns, values, strict=True)) + "\n"
        for step, *values in rows
    )


def test_a_step_that_goes_back_is_a_resumed_run(tmp_path: Path) -> None:
    curve = read(tmp_path, text([1, 2, 3, 4, 5, 3, 4, 5, 6], loss=[5.0, 4.0, 3.0, 2.0, 1.0, 3.5, 2.5, 1.5, 0.5]))
    assert curve.steps == (1, 2, 3, 4, 5, 6)
    assert curve.losses == (5.0, 4.0, 3.5, 2.5, 1.5, 0.5)
    (note,) = curve.notes
    assert "from 5 to 3" in note
    assert "3 of 9 points are left out" in note


def test_a_resumed_run_that_logs_at_other_steps_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    curve = read(tmp_path, text([10, 20, 30, 40, 15, 25], loss=[4.0, 3.0, math.nan, math.nan, 2.5, 2.0]))
    assert curve.steps == (10, 15, 25)
    assert curve.losses == (4.0, 2.5, 2.0)


def test_a_step_logged_again_counts_once(tmp_path: Path) -> None:
    curve = read(tmp_path, text([1, 1, 2, 2, 3], loss=[5.0, 4.5, 4.0, 3.5, 3.0]))
    assert (curve.steps, curve.losses) == ((1, 2, 3), (4.5, 3.5, 3.0))
    assert curve.notes == ("2 times a step was logged again: the last value of each counts",)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_value_of_every_step_that_no_later_restart_undid(tmp_path: Path, steps: list[int]) -> None:
    losses = [float(i) for i in range(len(steps))]
    curve = read(tmp_path, text(steps, loss=losses))
    expected = [i for i, step in enumerate(steps) if all(later > step for later in steps[i + 1 :])]
    assert curve.steps == tuple(steps[i] for i in expected)
    assert curve.losses == tuple(losses[i] for i in expected)


@pytest.mark.parametrize(
    ("steps", "counted"),
    [
        ([100, 200, 300, 100, 200, 300, 100], [100, 200, 300, 400, 500, 600, 700]),
        ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6]),
        ([300, 300, 300], [300, 600, 900]),
    ],
)
def test_steps_that_start_anew_in_each_epoch_are_counted_on(
    steps: list[int], counted: list[int], tmp_path: Path
) -> None:
    epochs = [1 + i // 3 if len(steps) > 3 else 1 + i for i in range(len(steps))]
    lines = [f"Epoch {epoch}, step {step}, loss 2.5" for epoch, step in zip(epochs, steps, strict=True)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.steps == tuple(counted)
    assert curve.notes == ("steps start anew in each epoch: counted on over 3 epochs",)


def test_a_run_resumed_in_an_earlier_epoch(tmp_path: Path) -> None:
    points = [(1, 10), (1, 20), (2, 10), (2, 20), (3, 10), (2, 20), (3, 10), (3, 20)]
    lines = [f"epoch {epoch} step {step} loss {3 - i / 8}" for i, (epoch, step) in enumerate(points)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.steps == (10, 20, 30, 40, 50, 60)
    assert curve.losses == tuple(3 - i / 8 for i in (0, 1, 2, 5, 6, 7))


def test_steps_of_the_whole_run_beside_an_epoch_stay_as_they_are(tmp_path: Path) -> None:
    lines = [f"epoch {1 + step // 3} step {step} loss 2.5" for step in range(9)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.steps == tuple(range(9))
    assert curve.notes == ()


def test_a_zero_loss_beside_a_norm_that_is_not_finite_is_nan(tmp_path: Path) -> None:
    norms = [1.0, 0.5, math.nan, math.inf]
    curve = read(tmp_path, text([1, 2, 3, 4], loss=[2.5, 0.0, 0.0, 0.0], grad_norm=norms))
    assert same(curve.losses, [2.5, 0.0, math.nan, math.nan])
    assert any("2 losses of exactly 0" in note for note in curve.notes)


def test_a_norm_beside_no_loss_was_not_logged(tmp_path: Path) -> None:
    curve = read(tmp_path, "norm = 0.5\nstep 1 loss 2.5\nstep 2 loss 2.25\n")
    assert (curve.grad_norms, curve.grad_norm_key) == (None, None)


def test_no_record_with_both_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record holds both 'loss' and a step; choose with --loss-key, --step-key"):
        read(tmp_path, "x,loss,tokens\n1,,5\n2,3.5,\n", step="tokens", loss="loss")


def as_csv(steps: list[int], losses: list[float], norms: list[float]) -> bytes:
    rows = zip(steps, losses, norms, strict=True)
    return ("step,loss,grad_norm\n" + "".join(f"{s},{x!r},{n!r}\n" for s, x, n in rows)).encode()


def as_jsonl(steps: list[int], losses: list[float], norms: list[float]) -> bytes:
    rows = zip(steps, losses, norms, strict=True)
    return "".join(json.dumps({"step": s, "loss": x, "grad_norm": n}) + "\n" for s, x, n in rows).encode()


def as_json(steps: list[int], losses: list[float], norms: list[float]) -> bytes:
    rows = zip(steps, losses, norms, strict=True)
    history = [{"step": s, "loss": x, "grad_norm": n} for s, x, n in rows]
    return json.dumps({"log_history": history}, indent=1).encode()


def as_parquet(steps: list[int], losses: list[float], norms: list[float]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"step": steps, "loss": pa.array(losses, pa.float64()), "grad_norm": norms}), out)
    return out.getvalue()


def as_text(steps: list[int], losses: list[float], norms: list[float]) -> bytes:
    return text(steps, loss=losses, grad_norm=norms).encode()


LOSSES = st.floats(width=32).filter(lambda x: x != 0)  # beside a norm of NaN, 0 stands for NaN


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_json, as_parquet, as_text])
@given(
    points=st.lists(
        st.tuples(st.integers(0, 10**9), LOSSES, st.floats(width=32)),
        min_size=2,
        max_size=20,
        unique_by=lambda point: point[0],
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_is_the_same_in_every_format(
    write: Callable[[list[int], list[float], list[float]], bytes],
    tmp_path: Path,
    points: list[tuple[int, float, float]],
) -> None:
    points.sort()
    steps, losses, norms = (list(column) for column in zip(*points, strict=True))
    curve = read(tmp_path, write(steps, losses, norms))
    assert f"as_{curve.format}" == write.__name__
    assert list(curve.steps) == steps
    assert same(curve.losses, losses)
    assert same(curve.grad_norms or (), norms)
    assert curve.notes == ()


def test_and_in_tensorboards(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(50):
            writer.add_scalar("loss", 4 - step / 32, step)
            writer.add_scalar("grad_norm", 1 + step / 64, step)
    curve = read_log(tmp_path)
    assert curve.steps == tuple(range(50))
    assert curve.losses == tuple(4 - step / 32 for step in range(50))
    assert curve.grad_norms == tuple(1 + step / 64 for step in range(50))
