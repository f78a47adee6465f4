"""Which signal of an unstable trial left the range of its stable siblings first, and how long before its loss did.

Siblings are the trials of the same scheme, body and size whose outcome is ``stable``, at whatever learning rate and
seed, other than the trial itself. With x_s(t) the logarithm of signal s at step t (:mod:`lrsweep.analysis.signals`),

    edge      U_s(t) = max over siblings j and steps t' ≥ t of x_{j,s}(t')
    excess    d_s(t) = x_s(t) − U_s(t)
    held      h_s(t) = min of d_s over the K = 20 steps from t on
    margin    m_s    = the largest h_s of any sibling against the edge of the others, or 0
    exit      the first t with h_s(t) > m_s

so a signal has left when it is higher than any stable sibling at that step *or later*, by more than a stable sibling
ever was above the rest, for 20 steps on end. "Or later", because a trial at a higher learning rate goes through the
same growth in fewer steps: against the same step alone, each of the 39 unstable trials of the 10m reference sweep (9 or
22 siblings) has its first exit at step 2 or 3, and four in five of its signals are out by step 10 of the warm-up's 100.

The margin has no constant: were a further stable trial exchangeable with n siblings, a given signal of it would leave
with a probability of about 1/(n + 1). K has: it is the detector's patience, the points for which a recovery is waited
for. Of those 39 trials 35 have the same first site and layer with K = 40, and 26 with K = 10, where a bump of the loss
or of log Z in the warm-up, over before 20 steps, is first in 12. The false alarms hardly depend on it: 2 to 4% of the
signals with K from 1 to 40.

What this cannot tell. With few siblings that is a high rate, and there are many signals, so *some* signal of a stable
trial often leaves: :func:`false_alarms` says how often, by leaving each sibling out. Siblings span the stable learning
rates only, so what grows with the learning rate by itself leaves in a trial far above them too, harmless or not:
trials just above the frontier tell most. First is not the cause. Downward exits are not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lrsweep.analysis.outcomes import SCHEME_KEYS
from lrsweep.analysis.signals import Signal, Trace

HOLD = 20
"""K, in steps: the default patience of the detector."""
MIN_SIBLINGS = 3
"""Stable siblings below which there is no band: with two, a margin from leaving one out could not be tried on one."""

EXIT_COLUMNS = ("rank", "site", "layer", "stat", "step", "before_loss", "before_onset", "excess")
LEAD_COLUMNS = (*SCHEME_KEYS, "lr", "seed", "outcome", "trial", *EXIT_COLUMNS)
BAND_COLUMNS = (*SCHEME_KEYS, "siblings", "signals", "false_alarms", "siblings_alarmed", "unstable")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """Where stable trials stay."""

    siblings: int
    """Trials that span it."""
    edge: NDArray[np.float32]
    """U [steps, signals]; −inf where no sibling has a number."""
    margin: NDArray[np.float32]
    """m [signals]; +inf where a sibling itself was not finite for K steps."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """One trial, stable or not, against its siblings."""

    trial: Trace
    """Its own signals."""
    onset: int | None
    """Step of its own verdict."""
    siblings: tuple[Trace, ...]
    """In the order of the table."""
    band: Band | None
    """Theirs; None if they are fewer than :data:`MIN_SIBLINGS`."""
    exits: pd.DataFrame
    """What left it, with :data:`EXIT_COLUMNS`; no row without a band."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeadTimes:
    """Of all unstable trials of a sweep."""

    exits: pd.DataFrame
    """A row for each signal that left, with :data:`LEAD_COLUMNS`; ``rank`` is 1 for the trial's first."""
    bands: pd.DataFrame
    """A row for each scheme, body and size, with :data:`BAND_COLUMNS`."""


def make_band(siblings: Sequence[Trace]) -> Band:
    """The band of two traces or more, which have the same signals and steps."""
    assert all(sibling.signals == siblings[0].signals for sibling in siblings)
    return _band([(sibling.logs, _from_here_on(sibling.logs)) for sibling in siblings])


def _band(siblings: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Band:
    """Of each sibling the logs, and the highest they are from each step on."""
    first = second = np.full_like(siblings[0][1], -np.inf)
    for _, ahead in siblings:
        first, second = np.maximum(first, ahead), np.maximum(second, np.minimum(first, ahead))
    margin = np.zeros(first.shape[1], np.float32)
    for logs, ahead in siblings:
        edge_of_the_others = np.where(ahead == first, second, first)
        margin = np.maximum(margin, np.fmax.reduce(_held(logs, edge_of_the_others), axis=0, initial=0.0))
    return Band(siblings=len(siblings), edge=first, margin=margin)


def exits(trial: Trace, band: Band, *, onset: float = np.nan) -> pd.DataFrame:
    """The signals of ``trial`` that leave ``band``, with :data:`EXIT_COLUMNS`, by step, of equals the highest first.

    ``step`` is that of the exit; ``before_loss`` how many steps the loss left later (negative: earlier; NaN: the loss
    never left), ``before_onset`` the same for ``onset``, the step of the trial's own verdict; ``excess`` the highest
    the signal came above the edge from then on, as a natural logarithm (nats for ``loss`` and ``log_z``, of a ratio
    for all others), +inf where it was not finite. A trial that was stopped counts as out after its last step.
    """
    out = _held(trial.logs, band.edge) > band.margin
    first = {int(s): int(out[:, s].argmax()) for s in np.flatnonzero(out.any(axis=0))}
    excess = _excess(trial.logs, band.edge)
    highest = {s: float(np.fmax.reduce(excess[at:, s])) for s, at in first.items()}
    loss = trial.signals.index(Signal("loss"))
    loss_step = trial.steps[first[loss]] if loss in first else np.nan
    rows: list[tuple[object, ...]] = []
    for rank, s in enumerate(sorted(first, key=lambda s: (first[s], -highest[s])), start=1):
        step, (site, layer, stat) = int(trial.steps[first[s]]), trial.signals[s]
        rows.append((rank, site, layer, stat, step, loss_step - step, onset - step, highest[s]))
    return _exit_table(rows)


def _exit_table(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(EXIT_COLUMNS))
    return table.astype({"layer": "Int64", "before_loss": float, "before_onset": float, "excess": float})


def siblings_of(judged: pd.DataFrame, trial: str) -> pd.DataFrame:
    """The rows of the stable trials of its scheme, body and size, other than itself."""
    row = judged[judged["trial"] == trial].iloc[0]
    same = (judged[SCHEME_KEYS] == row[SCHEME_KEYS]).all(axis=1)
    return judged[same & (judged["outcome"] == "stable") & (judged["trial"] != trial)]


def compare(judged: pd.DataFrame, trial: str, read: Callable[[str], Trace]) -> Comparison:
    """``trial`` against the band of its stable siblings; ``judged`` and ``read`` as in :func:`lead_times`."""
    onset = judged.loc[judged["trial"] == trial, "onset_step"].iloc[0]
    own, siblings = read(trial), tuple(map(read, siblings_of(judged, trial)["trial"]))
    band = make_band(siblings) if len(siblings) >= MIN_SIBLINGS else None
    return Comparison(
        trial=own,
        onset=None if pd.isna(onset) else int(onset),
        siblings=siblings,
        band=band,
        exits=_exit_table([]) if band is None else exits(own, band, onset=np.nan if pd.isna(onset) else float(onset)),
    )


def false_alarms(siblings: Sequence[Trace]) -> NDArray[np.int64]:
    """How many signals of each sibling leave the band of the others: [siblings], three at least."""
    pairs = [(sibling.logs, _from_here_on(sibling.logs)) for sibling in siblings]
    counts = []
    for i, (logs, _) in enumerate(pairs):
        band = _band([*pairs[:i], *pairs[i + 1 :]])
        counts.append(int((_held(logs, band.edge) > band.margin).any(axis=0).sum()))
    return np.array(counts)


def lead_times(judged: pd.DataFrame, read: Callable[[str], Trace]) -> LeadTimes:
    """Exits of every unstable trial of every scheme, body and size.

    ``bands`` has the number of ``siblings`` (stable trials), of ``signals``, of ``unstable`` trials; ``false_alarms``,
    the share of a stable sibling's signals that leave the band of the others, and ``siblings_alarmed``, how many
    siblings have any that do. The last two are NaN with fewer than :data:`MIN_SIBLINGS` siblings, and the scheme has
    no row in ``exits``.

    Args:
        judged: trials with their ``outcome`` from :func:`lrsweep.analysis.judge`, errors left out.
        read: a trial's id → its trace.
    """
    found, bands = [], []
    for key, group in judged.groupby(SCHEME_KEYS, sort=True):
        stable, unstable = group[group["outcome"] == "stable"], group[group["unstable"]]
        counts = (len(stable), 0, np.nan, np.nan, len(unstable))
        if len(stable) >= MIN_SIBLINGS and len(unstable):
            siblings = [read(trial) for trial in stable["trial"]]
            band, alarms, n_signals = make_band(siblings), false_alarms(siblings), len(siblings[0].signals)
            counts = (len(stable), n_signals, alarms.mean() / n_signals, (alarms > 0).sum(), len(unstable))
            for row in unstable.to_dict("records"):
                onset = np.nan if pd.isna(row["onset_step"]) else float(row["onset_step"])
                left = exits(read(row["trial"]), band, onset=onset)
                found.append(left.assign(**{name: row[name] for name in LEAD_COLUMNS[:7]}))
        bands.append((*key, *counts))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return LeadTimes(
        exits=table.reindex(columns=list(LEAD_COLUMNS)), bands=pd.DataFrame(bands, columns=list(BAND_COLUMNS))
    )


def lead_summary(lead: LeadTimes) -> pd.DataFrame:
    """``bands`` with what left first in most of the unstable trials of each scheme.

    ``left`` counts the trials in which anything left. ``first_site`` is the site that was first most often in them (of
    equals the first by name), ``first_layer`` its most frequent layer then (the lowest of equals; <NA> for the whole
    model), ``first_trials`` in how many it was; ``near_lr`` is the lowest LR of these trials, and ``near_left``,
    ``near_site``, ``near_layer``, ``near_trials`` are the same of that LR alone. ``before_loss`` and ``before_onset``
    are medians of the first signal's lead in all of them. NaN, <NA> or an empty name where there is none.
    """
    first = lead.exits[lead.exits["rank"] == 1]
    rows = []
    for band in lead.bands.to_dict("records"):
        own = first[(first[SCHEME_KEYS] == [band[key] for key in SCHEME_KEYS]).all(axis=1)]
        near_lr = own["lr"].min()
        near = own[own["lr"] == near_lr]
        medians = own["before_loss"].median(), own["before_onset"].median()
        rows.append((len(own), *_most_often(own), near_lr, len(near), *_most_often(near), *medians))
    names = ["left", "first_site", "first_layer", "first_trials"]
    names += ["near_lr", "near_left", "near_site", "near_layer", "near_trials", "before_loss", "before_onset"]
    summary = pd.DataFrame(rows, columns=names).astype({"first_layer": "Int64", "near_layer": "Int64"})
    return pd.concat([lead.bands, summary], axis=1)


def _most_often(first: pd.DataFrame) -> tuple[str, int | None, int]:
    """Site, its layer and count among the first exits of some trials."""
    if first.empty:
        return "", None, 0
    site = first["site"].mode().iloc[0]
    layers = first.loc[first["site"] == site, "layer"]
    usual = layers.dropna().mode()
    return str(site), int(usual.iloc[0]) if len(usual) else None, len(layers)


def _from_here_on(logs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The highest finite value at each step or later."""
    finite = np.where(np.isfinite(logs), logs, np.float32(-np.inf))
    return np.maximum.accumulate(finite[::-1], axis=0)[::-1]


def _excess(logs: NDArray[np.float32], edge: NDArray[np.float32]) -> NDArray[np.float32]:
    """d [steps of the trial, signals]; NaN, which is not above anything, where neither has a number."""
    with np.errstate(invalid="ignore"):
        return logs - edge[: len(logs)]


def _held(logs: NDArray[np.float32], edge: NDArray[np.float32]) -> NDArray[np.float32]:
    """h, for every step from which K follow; after the end of a trial that was stopped all are out."""
    held = _excess(logs, edge)
    if len(logs) < len(edge):
        held = np.pad(held, ((0, HOLD - 1), (0, 0)), constant_values=np.inf)
    width = 1
    while width < HOLD:
        further = min(width, HOLD - width)
        held, width = np.minimum(held[:-further], held[further:]), width + further
    return held
