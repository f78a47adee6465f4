"""A trials table from the few columns that a test is about."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lrsweep.store import TRIAL_COLUMNS

_DEFAULTS: dict[str, Any] = {
    "scheme": "preln",
    "body": "gpt",
    "size": "0.2m",
    "n_params": 200_000,
    "lr": 0.1,
    "seed": 0,
    "verdict": "stable",
    "reason": "",
    "onset_step": pd.NA,
    "steps": 300,
    "tokens": 307_200,
    "loss_init": 5.5,
    "loss_final": 2.0,
    "loss_best": 2.0,
    "spikes": 0,
    "logit_max": 10.0,
    "wall_s": 1.0,
    "device": "cpu",
}
_DTYPES = {"onset_step": "Int64"} | {k: type(v) for k, v in _DEFAULTS.items() if v is not pd.NA}


def make_trials(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows that name only what differs from a stable trial of ``preln`` at LR 0.1 → a trials table."""
    full = [{**_DEFAULTS, **row, "trial": str(i)} for i, row in enumerate(rows)]
    return pd.DataFrame(full, columns=list(TRIAL_COLUMNS)).astype(_DTYPES)


def make_curve(by_lr: Mapping[float, float | str], **same: Any) -> pd.DataFrame:
    """``{lr: loss_final or verdict}`` of one seed → a trials table; a verdict has NaN as final loss."""
    rows = []
    for lr, value in by_lr.items():
        verdict, loss = (value, float("nan")) if isinstance(value, str) else ("stable", value)
        rows.append({"lr": lr, "verdict": verdict, "loss_final": loss, **same})
    return make_trials(rows)
