"""The largest stable learning rate as a bracket: [largest stable, smallest unstable] among those tested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrsweep.analysis.outcomes import SEED_KEYS, Epsilon, epsilon_of, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """The walk up the grid from the lowest LR stops at the first unstable one."""

    max_stable_lr: float
    """Largest stable LR that has no unstable one at or below it; NaN if there is none."""
    min_unstable_lr: float
    """Smallest unstable LR; NaN if there is none."""


def walk(judged: pd.DataFrame) -> Bracket:
    """Bracket of judged trials: of one seed, or of several, which then vote at each LR.

    An LR is unstable when at least half of its trials are (errors have no vote). Otherwise it is stable if
    any of its trials is; an LR where all are undertrained is neither, so it can be no bracket's end, and is
    passed over.
    """
    judged = judged[judged["outcome"] != "error"]
    lrs, at = np.unique(judged["lr"].to_numpy(dtype=float), return_inverse=True)
    n = len(lrs)
    trials_at = np.bincount(at, minlength=n)
    unstable = 2 * np.bincount(at, weights=judged["unstable"].to_numpy(dtype=float), minlength=n) >= trials_at
    stable = ~unstable & (np.bincount(at, weights=judged["outcome"].to_numpy() == "stable", minlength=n) > 0)
    first = int(np.argmax(unstable)) if unstable.any() else n
    below = lrs[:first][stable[:first]]
    return Bracket(
        max_stable_lr=float(below[-1]) if len(below) else np.nan,
        min_unstable_lr=float(lrs[first]) if first < n else np.nan,
    )


def brackets(trials: pd.DataFrame, epsilon: Epsilon) -> pd.DataFrame:
    """The bracket of every seed: a row for each scheme, body, size and seed, sorted by them.

    Columns: ``scheme, body, size, seed, epsilon, max_stable_lr, min_unstable_lr, trials, errors``. ``trials``
    counts those that were judged, ``errors`` those left out. NaN as in :class:`Bracket`; a seed with nothing
    but errors has both ends NaN.
    """
    rows = []
    for key, group in judge(trials, epsilon).groupby(SEED_KEYS, sort=True):
        bracket = walk(group)
        errors = int((group["outcome"] == "error").sum())
        rows.append(
            (
                *key,
                epsilon_of(epsilon, str(key[2])),
                bracket.max_stable_lr,
                bracket.min_unstable_lr,
                len(group) - errors,
                errors,
            )
        )
    columns = [*SEED_KEYS, "epsilon", "max_stable_lr", "min_unstable_lr", "trials", "errors"]
    return pd.DataFrame(rows, columns=columns)
