"""From statistics of intervals to columns."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from lrsweep.model import ProbeLevel
from lrsweep.train.recorder import Recorder, lowest_smoothed
from lrsweep.train.step import SCALARS, Interval

NAMES = (("qkv", "l2_rms"), ("attn", "logit_max"))


def test_lowest_smoothed_is_the_lowest_mean_of_twenty() -> None:
    losses = np.r_[np.full(30, 5.0), np.full(20, 2.0), np.full(30, 4.0)]
    assert lowest_smoothed(losses) == 2.0
    one_low_point = np.r_[np.full(19, 5.0), 1.0, np.full(19, 5.0)]
    assert lowest_smoothed(one_low_point) == pytest.approx((19 * 5 + 1) / 20)


def test_lowest_smoothed_of_a_short_or_broken_run() -> None:
    assert lowest_smoothed(np.array([3.0, 1.0])) == 2.0
    assert math.isnan(lowest_smoothed(np.array([math.nan, math.inf])))
    assert lowest_smoothed(np.r_[np.full(20, 2.0), math.nan]) == 2.0
    assert lowest_smoothed(np.r_[np.full(20, 2.0, np.float32), np.float32(3e38)]) == 2.0


def recorder() -> Recorder:
    """Three steps of two layers; logits are measured at the first and the last."""
    found = Recorder(NAMES, tokens_per_step=10)
    scalars = np.arange(3 * len(SCALARS), dtype=np.float32).reshape(3, -1)
    scalars[:, SCALARS.index("skipped")] = [0, 1, 0]
    layers = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    layers[1, :, 1] = np.nan
    probes = [ProbeLevel.ALL, ProbeLevel.NORMS, ProbeLevel.ALL]
    found.add([1, 2], [0.1, 0.2], probes[:2], Interval(scalars[:2], layers[:2]))
    found.add([3], [0.3], probes[2:], Interval(scalars[2:], layers[2:]))
    return found


def test_wide_columns() -> None:
    wide, _ = recorder().columns()
    assert wide["step"].tolist() == [1, 2, 3]
    assert wide["tokens"].tolist() == [10, 20, 30]
    assert wide["lr"].tolist() == [0.1, 0.2, 0.3]
    assert wide["loss"].tolist() == [0, 5, 10]
    assert wide["skipped"].tolist() == [False, True, False]
    assert pa.array(wide["logit_max"]).to_pylist() == [3.0, None, 11.0]  # null: not measured


def test_long_rows_leave_out_what_was_not_measured() -> None:
    _, long = recorder().columns()
    rows = list(zip(*(pa.array(column).to_pylist() for column in long.values()), strict=True))
    assert rows == [
        (1, 0, "qkv", "l2_rms", 0.0), (1, 0, "attn", "logit_max", 1.0),
        (1, 1, "qkv", "l2_rms", 2.0), (1, 1, "attn", "logit_max", 3.0),
        (2, 0, "qkv", "l2_rms", 4.0), (2, 1, "qkv", "l2_rms", 6.0),
        (3, 0, "qkv", "l2_rms", 8.0), (3, 0, "attn", "logit_max", 9.0),
        (3, 1, "qkv", "l2_rms", 10.0), (3, 1, "attn", "logit_max", 11.0),
    ]  # fmt: skip


def test_logit_max_passes_over_nan_and_is_nan_if_nothing_was_measured() -> None:
    assert recorder().logit_max() == 11.0
    empty = Recorder(NAMES, tokens_per_step=10)
    empty.add(
        [1], [0.1], [ProbeLevel.NORMS], Interval(np.zeros((1, 5), np.float32), np.full((1, 2, 2), np.nan, np.float32))
    )
    assert math.isnan(empty.logit_max())


def test_a_measured_nan_is_a_value_and_not_a_null() -> None:
    found = Recorder(NAMES, tokens_per_step=10)
    layers = np.full((1, 2, 2), np.nan, np.float32)
    found.add([1], [0.1], [ProbeLevel.ALL], Interval(np.zeros((1, 5), np.float32), layers))
    wide, long = found.columns()
    assert wide["logit_max"].null_count == 0
    assert math.isnan(wide["logit_max"][0].as_py())
    assert len(long["value"]) == 4
