"""A section of the report: one body and size, which share axes and tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrsweep.analysis import Epsilon, epsilon_of, frontier, judge
from lrsweep.report.labels import size_order
from lrsweep.report.palette import in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The judged trials of one body and size."""

    body: str
    """``gpt`` or ``llama``."""
    size: str
    """Name of the size preset."""
    epsilon: float
    """ε in nats."""
    trials: pd.DataFrame
    """Trials that ran (no errors), with ``outcome``; may be empty."""
    frontier: pd.DataFrame
    """Their frontier."""

    @property
    def schemes(self) -> list[str]:
        """In the order of the palette."""
        return in_order(self.trials["scheme"])

    @property
    def lrs(self) -> tuple[float, ...]:
        """All tested LRs, ascending."""
        return tuple(np.unique(self.trials["lr"]).tolist())

    @property
    def title(self) -> str:
        """``gpt 0.2m, ε = 0.25 nats, 3 seeds``."""
        seeds = self.trials["seed"].nunique()
        return f"{self.body} {self.size}, ε = {self.epsilon:g} nats, {seeds} seed{'' if seeds == 1 else 's'}"


def sections(trials: pd.DataFrame, epsilon: Epsilon) -> list[Section]:
    """One section for each body and size of which a trial ran, the smallest size first."""
    judged = judge(trials, epsilon)
    ran = judged[judged["outcome"] != "error"]
    groups = [(str(body), str(size), part) for (body, size), part in ran.groupby(["body", "size"])]
    return [
        Section(body=body, size=size, epsilon=epsilon_of(epsilon, size), trials=part, frontier=frontier(part, epsilon))
        for body, size, part in sorted(groups, key=lambda group: (group[0], size_order(group[1])))
    ]
