"""A folder of labelled curves: ``labels.csv`` names the files, what each holds, and from which step to which."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrsweep.errors import UserError

Group = Literal["spiking", "diverged or non-finite", "healthy", "data outliers"]

GROUPS: dict[str, Group] = {
    "spike_recovered": "spiking",
    "spikes_repeated": "spiking",
    "divergence": "diverged or non-finite",
    "divergence_slow": "diverged or non-finite",
    "nonfinite": "diverged or non-finite",
    "healthy": "healthy",
    "data_outliers": "data outliers",
}
"""Label → column of the table. Labels that are not here count nowhere."""
LABELS = "labels.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run: columns of equal length, None where a value was not logged."""

    file: str
    group: Group
    steps: list[int]
    losses: list[float | None]
    grad_norms: list[float | None]
    event_step: int | None
    """First step of the instability that the label names; None where it names none. Jumps of the data are not one."""


def read_curves(folder: Path) -> list[Curve]:
    """All curves of ``folder`` whose label counts, in the order of its ``labels.csv``.

    Raises UserError where the folder, a file it names, or a column is missing.
    """
    labels = folder / LABELS
    if not labels.is_file():
        raise UserError(
            f"no {LABELS} in {folder}; give a folder of labelled curves, for example: make bench-detector CURVES=curves"
        )
    with labels.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        curves = [_read(folder, row) for row in rows if row["label"] in GROUPS]
    except (KeyError, OSError) as error:
        missing = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{labels}: {missing}") from None
    if not curves:
        raise UserError(f"{labels} names no curve with one of the labels {', '.join(GROUPS)}")
    return curves


def _read(folder: Path, row: dict[str, str]) -> Curve:
    with (folder / row["file"]).open(newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))

    def number(cell: str | None) -> float | None:
        return float(cell) if cell else None

    group = GROUPS[row["label"]]
    unstable = group in ("spiking", "diverged or non-finite")
    return Curve(
        file=row["file"],
        group=group,
        steps=[int(float(point["step"])) for point in points],
        losses=[number(point["loss"]) for point in points],
        grad_norms=[number(point.get("grad_norm")) for point in points],
        event_step=int(row["event_first_step"]) if unstable and row["event_first_step"] else None,
    )
