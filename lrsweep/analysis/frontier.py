"""The stability frontier: one row for each scheme, body and size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lrsweep.analysis.bracket import walk
from lrsweep.analysis.dose_response import fit_lr50
from lrsweep.analysis.losses import best_point, lr_sensitivity, spikes_per_1k
from lrsweep.analysis.outcomes import SCHEME_KEYS, Epsilon, classify, compare_siblings, epsilon_of, telling
from lrsweep.analysis.spike_scores import rate_per_1k

FRONTIER_COLUMNS = (
    "scheme",
    "body",
    "size",
    "epsilon",
    "seeds",
    "max_stable_lr",
    "min_unstable_lr",
    "max_stable_lr_2eps",
    "min_unstable_lr_2eps",
    "lr50",
    "lr50_lo",
    "lr50_hi",
    "best_loss",
    "best_lr",
    "lr_sensitivity",
    "spikes_per_1k",
    "same_batch_spikes_per_1k",
)


def frontier(trials: pd.DataFrame, epsilon: Epsilon, spikes: pd.DataFrame | None = None) -> pd.DataFrame:
    """The frontier with :data:`FRONTIER_COLUMNS`, sorted by scheme, body and size.

    ``epsilon`` in nats; ``seeds`` counts those with a trial that is no error; ``max_stable_lr`` and
    ``min_unstable_lr`` are the bracket of the seeds' vote (:func:`~lrsweep.analysis.bracket.walk`), and
    ``max_stable_lr_2eps`` and ``min_unstable_lr_2eps`` the same at twice the ε, to show how much of it is ε's choice;
    ``lr50``, ``lr50_lo`` and ``lr50_hi`` the fit to all outcomes but the undertrained, which tell nothing of the
    frontier (:func:`~lrsweep.analysis.dose_response.fit_lr50`); ``best_loss`` and ``best_lr`` the lowest
    point of the seed-mean curve; ``lr_sensitivity`` in nats; ``spikes_per_1k`` over 1,000 steps, and
    ``same_batch_spikes_per_1k`` those against the siblings on the same batches, of the trials that ``spikes`` scores.
    Each is NaN where its function says so.

    Args:
        trials: a table with the columns of :data:`lrsweep.store.TRIAL_COLUMNS`, in any order of rows.
        epsilon: ε in nats, one number or one for each size.
        spikes: from :func:`~lrsweep.analysis.spike_scores.spike_scores`; None: not scored.

    Raises:
        ValueError: ε is negative or NaN, or a size has none.
    """
    rows = []
    for key, compared in compare_siblings(trials).groupby(SCHEME_KEYS, sort=True):
        own_epsilon = epsilon_of(epsilon, str(key[2]))
        group = classify(compared, own_epsilon)
        bracket, lenient = walk(group), walk(classify(compared, 2 * own_epsilon))
        lr50 = fit_lr50(*telling(group))
        best = best_point(group)
        rows.append(
            (
                *key,
                own_epsilon,
                group.loc[group["outcome"] != "error", "seed"].nunique(),
                bracket.max_stable_lr,
                bracket.min_unstable_lr,
                lenient.max_stable_lr,
                lenient.min_unstable_lr,
                lr50.median,
                lr50.lo,
                lr50.hi,
                best.loss,
                best.lr,
                lr_sensitivity(group),
                spikes_per_1k(group),
                np.nan if spikes is None else _same_batch_spikes_per_1k(group, spikes),
            )
        )
    return pd.DataFrame(rows, columns=list(FRONTIER_COLUMNS))


def _same_batch_spikes_per_1k(group: pd.DataFrame, spikes: pd.DataFrame) -> float:
    return rate_per_1k(spikes[spikes["trial"].isin(group["trial"])], "same_batch_spikes")
