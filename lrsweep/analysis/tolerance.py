"""The largest stable learning rate as a function of ε, which needs no threshold."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lrsweep.analysis.bracket import walk
from lrsweep.analysis.outcomes import SCHEME_KEYS, SEED_KEYS, classify, compare_siblings


def tolerance(trials: pd.DataFrame) -> pd.DataFrame:
    """max LR(ε) of every seed, as ``scheme, body, size, seed, epsilon, max_lr``.

    It is a step function that never falls: each row holds from its ``epsilon`` (nats) up to the next row's,
    and the last one for good. The first row of a seed is ε = 0; ``max_lr`` is NaN as long as no LR is stable.
    """
    return _step_functions(trials, SEED_KEYS)


def voted_tolerance(trials: pd.DataFrame) -> pd.DataFrame:
    """max LR(ε) of every scheme by the vote of its seeds: :func:`tolerance` without the column ``seed``."""
    return _step_functions(trials, SCHEME_KEYS)


def _step_functions(trials: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rows: list[tuple[object, ...]] = []
    for key, group in compare_siblings(trials).groupby(keys, sort=True):
        excess = group["excess"].dropna()
        previous = None
        for epsilon in np.unique([0.0, *excess[excess > 0]]):
            max_lr = walk(classify(group, float(epsilon))).max_stable_lr
            if previous is None or not np.array_equal(max_lr, previous, equal_nan=True):
                rows.append((*key, float(epsilon), max_lr))
            previous = max_lr
    return pd.DataFrame(rows, columns=[*keys, "epsilon", "max_lr"])
