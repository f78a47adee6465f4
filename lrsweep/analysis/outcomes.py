"""Judging trials against their siblings: the trials of the same scheme, body, size and seed.

A trial's own verdict knows nothing of other learning rates. Two things only show beside its siblings: that a
finite, falling loss ended far above what the scheme can reach (``degraded``), and that a high loss is due to
a learning rate that is too low, which is undertraining and no instability (``undertrained``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Epsilon = float | Mapping[str, float]
"""ε in nats: one number, or one for each size by name."""

SCHEME_KEYS = ["scheme", "body", "size"]
"""What one row of the frontier stands for."""
SEED_KEYS = [*SCHEME_KEYS, "seed"]
"""What siblings share."""

UNSTABLE = ("degraded", "stalled", "diverged", "nonfinite")
"""Outcomes that count as unstable; the others are ``stable``, ``undertrained`` and ``error``."""


def epsilon_of(epsilon: Epsilon, size: str) -> float:
    """The ε of one size, in nats.

    Raises:
        ValueError: ε is negative or NaN, or the mapping lacks ``size``.
    """
    if isinstance(epsilon, Mapping):
        if size not in epsilon:
            raise ValueError(f"epsilon has no entry for size {size!r}; it has {', '.join(epsilon) or 'none'}")
        value = epsilon[size]
    else:
        value = epsilon
    if not value >= 0:
        raise ValueError(f"epsilon must be at least 0 nats, got {value}")
    return float(value)


def compare_siblings(trials: pd.DataFrame) -> pd.DataFrame:
    """``trials`` with ``excess`` and ``above_best``, which hold whatever ε is.

    The best sibling has the lowest held-out ``loss_final`` among those whose own verdict is ``stable`` or
    ``stalled`` (of equals the lowest LR). ``excess`` is ``loss_final`` less the best one's, in nats, NaN
    where either is missing; ``above_best`` tells whether the trial's LR is above the best one's, False where
    no sibling has a final loss.
    """
    finite = trials["loss_final"].where(np.isfinite(trials["loss_final"]))
    candidates = trials[[*SEED_KEYS, "lr"]].assign(loss=finite)[trials["verdict"].isin(("stable", "stalled"))]
    best = candidates.dropna(subset="loss").sort_values(["loss", "lr"]).drop_duplicates(SEED_KEYS)
    beside = trials[SEED_KEYS].merge(best, on=SEED_KEYS, how="left").set_axis(trials.index)
    return trials.assign(excess=finite - beside["loss"], above_best=trials["lr"] > beside["lr"])


def classify(compared: pd.DataFrame, epsilon: float | pd.Series[float]) -> pd.DataFrame:
    """A table from :func:`compare_siblings` with ``outcome`` and ``unstable`` at ``epsilon`` (nats)."""
    verdict, above = compared["verdict"].to_numpy(), compared["above_best"].to_numpy()
    excess = compared["excess"].to_numpy()
    ended_high = (verdict == "stable") & (excess > np.asarray(epsilon))
    outcome = np.select(
        [
            (verdict == "stable") & np.isnan(excess),
            ended_high & above,
            (ended_high | (verdict == "stalled")) & ~above,
        ],
        ["nonfinite", "degraded", "undertrained"],
        default=verdict,
    )
    return compared.assign(outcome=outcome, unstable=np.isin(outcome.astype(str), UNSTABLE))


def telling(judged: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """LR of each judged trial that tells of the frontier, and whether it was unstable.

    Errors and trials whose LR was too low to learn do not.
    """
    some = judged[~judged["outcome"].isin(("undertrained", "error"))]
    return some["lr"].to_numpy(dtype=float), some["unstable"].to_numpy(dtype=np.bool_)


def judge(trials: pd.DataFrame, epsilon: Epsilon) -> pd.DataFrame:
    """``trials`` with the columns ``excess`` (nats above the best sibling), ``outcome`` and ``unstable``.

    ======================  ===============================================================================
    ``outcome``             when
    ======================  ===============================================================================
    ``stable``              own verdict stable, ``loss_final`` within ε of the best sibling's
    ``degraded``            own verdict stable, more than ε above it, at an LR above the best sibling's
    ``undertrained``        stalled, or stable and more than ε above it, at an LR not above the best sibling's
    ``stalled``             own verdict stalled, at an LR above the best sibling's
    ``diverged``            own verdict, at any LR
    ``nonfinite``           own verdict, at any LR; or stable with a ``loss_final`` that is NaN or infinite
    ``error``               a fault of the program or machine: no statistic counts it
    ======================  ===============================================================================

    ``unstable`` is True for degraded, stalled, diverged and nonfinite; an ``error`` is neither stable nor
    unstable.

    Args:
        trials: a table with the columns of :data:`lrsweep.store.TRIAL_COLUMNS`, in any order of rows.
        epsilon: ε in nats, one number or one for each size.

    Raises:
        ValueError: ε is negative or NaN, or a size has none.
    """
    per_size = {size: epsilon_of(epsilon, size) for size in trials["size"].unique()}
    per_trial = trials["size"].map(per_size).astype(float)
    return classify(compare_siblings(trials), per_trial).drop(columns="above_best")
