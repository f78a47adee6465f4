"""Where the frontier lies relative to the grid, and which learning rates to try next."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import pandas as pd

from lrsweep.analysis.outcomes import SCHEME_KEYS

_EXTEND_BY = 3
_REFINE_BY = 2
_LONE_RATIO = math.sqrt(10)
_PLATEAU_RATIO, _PLATEAU_LRS = 4, 2
"""Of the largest stable LR at 2ε to that at ε, to be exceeded; and tested LRs that lie between them, at least. Of 32
brackets in five sweeps at 10M and 30M the ratio is 1 or 2 at 25, 4 at one, and 8 to 64 at six whose losses flatten out.
"""

Where = Literal["above", "below", "plateau", "edge", "inside"]
"""``above`` the grid: no unstable LR. ``below``: no stable LR. ``plateau``: the losses of several LRs above the bracket
lie between ε and 2ε above the best, so it tells more of ε, and of how long was trained, than of an edge. ``edge``:
bracketed, but the best loss is at the lowest LR, and if a lower one has a better loss, more trials are ε above that
and the bracket lies too high. ``inside``: bracketed otherwise, or nothing ran. The most pressing first.
"""

_WHY: dict[Where, str] = {
    "above": "the frontier lies above the grid; extend it",
    "below": "the frontier lies below the grid; extend it",
    "plateau": "the bracket cuts a plateau (at twice the ε it lies more than "
    f"{_PLATEAU_RATIO} times as high); train longer",
    "edge": "the best loss is at the lowest LR, so the bracket may lie too high; extend the grid below",
    "inside": "narrow the bracket",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridAdvice:
    """Learning rates that extend one scheme's grid, refine its bracket, or are worth a longer training."""

    scheme: str
    """Label of the scheme."""
    body: str
    """``gpt`` or ``llama``."""
    size: str
    """Name of the size preset."""
    where: Where
    """Where the frontier lies."""
    lrs: tuple[float, ...]
    """Ascending; of a plateau those of the grid, from the best to its end. Empty if nothing ran, or if the bracket is
    too tight for a value of three digits inside.
    """

    @property
    def why(self) -> str:
        """What that means and what to do, in words."""
        return _WHY[self.where]


def grid_advice(frontier: pd.DataFrame, trials: pd.DataFrame) -> tuple[GridAdvice, ...]:
    """One advice for each row of ``frontier``, the grid being the LRs that ``trials`` tested for it.

    Outside the grid, and at its edge, its spacing is continued by three values on that side (half decades if it has one
    LR); inside, two geometric points are laid into the bracket. Values are rounded to three digits. A plateau is where
    the largest stable LR at twice the frontier's ε is more than four times as high, and at least two tested LRs are
    stable then that were not.
    """
    ran = trials[trials["verdict"] != "error"]
    grids = {key: np.unique(group["lr"]) for key, group in ran.groupby(SCHEME_KEYS)}
    advice = []
    columns = [*SCHEME_KEYS, "max_stable_lr", "min_unstable_lr", "best_lr", "max_stable_lr_2eps"]
    for scheme, body, size, *found in frontier[columns].itertuples(index=False, name=None):
        where, values = _advise([float(lr) for lr in grids.get((scheme, body, size), ())], *found)
        advice.append(GridAdvice(scheme=scheme, body=body, size=size, where=where, lrs=values))
    return tuple(advice)


def worth_trying(advice: Iterable[GridAdvice]) -> list[GridAdvice]:
    """Those that name an LR, the most pressing first."""
    return sorted((a for a in advice if a.lrs), key=lambda a: get_args(Where).index(a.where))


def _advise(
    lrs: list[float], max_stable: float, min_unstable: float, best: float, lenient: float
) -> tuple[Where, tuple[float, ...]]:
    if not lrs:
        return "inside", ()
    if math.isnan(min_unstable):
        return "above", tuple(map(round_lr, _continue(lrs)))
    n_between = sum(max_stable < lr <= lenient for lr in lrs)
    if lenient > _PLATEAU_RATIO * max_stable and n_between >= _PLATEAU_LRS:
        return "plateau", tuple(lr for lr in lrs if best <= lr <= lenient)
    if math.isnan(max_stable) or best == lrs[0]:
        downward = _continue([1 / lr for lr in reversed(lrs)])
        return "below" if math.isnan(max_stable) else "edge", tuple(round_lr(1 / x) for x in reversed(downward))
    inside = np.geomspace(max_stable, min_unstable, _REFINE_BY + 2)[1:-1]
    return "inside", tuple(lr for lr in map(round_lr, inside) if max_stable < lr < min_unstable)


def _continue(ascending: list[float]) -> list[float]:
    """The next values by the last two ratios in turn: 1, 2, 4 and 1, 3, 10, 30 go on as they began."""
    ratios = [b / a for a, b in pairwise(ascending)][-2:] or [_LONE_RATIO]
    values = [ascending[-1]]
    for i in range(_EXTEND_BY):
        values.append(values[-1] * ratios[i % len(ratios)])
    return values[1:]


def round_lr(lr: float) -> float:
    """Of three digits, as an LR is proposed."""
    return float(f"{lr:.3g}")
