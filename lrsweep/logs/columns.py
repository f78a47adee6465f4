"""From records to columns: which of them is the step, the loss and the gradient norm."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lrsweep.errors import UserError
from lrsweep.logs.names import NAMES, Role, role_of, words
from lrsweep.logs.numbers import number

Record = Iterable[tuple[str, object]]
"""What was logged together: names and values. Values may be text; those that are no number were not logged."""

NO_COLUMN = "none"
"""As ``--step-key``: the log has no steps; its points are numbered from 1."""

_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Names of columns that the user chose; None leaves the choice to the names known."""

    step: str | None = None
    """Training step, or :data:`NO_COLUMN`."""
    loss: str | None = None
    """Training loss, nats."""
    grad_norm: str | None = None
    """Gradient norm before clipping."""


@dataclass(frozen=True, slots=True)
class Column:
    """The numbers of one name, and the records that they stood in."""

    name: str
    """As the log spells it."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    """Indices of records, ascending."""
    values: array[float] = field(default_factory=lambda: array("d"))
    """One for each row; NaN and infinity are values."""

    def at(self, rows: array[int]) -> Sequence[float | None]:
        """The value in each of ``rows``; None where that record has none."""
        if rows == self.rows:
            return self.values
        known = dict(zip(self.rows, self.values, strict=True))
        return [known.get(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that were chosen."""

    step: Column | None
    """None: the points are to be numbered."""
    loss: Column
    """Training loss."""
    grad_norm: Column | None
    """None: not logged."""
    epoch: Column | None
    """None: not logged, or taken for the step."""
    rank: Column | None
    """Which process wrote the record; None: not logged."""


def choose_columns(records: Iterable[Record], keys: Keys, notes: list[str]) -> Columns:
    """Reads ``records`` to their end and picks the columns by ``keys``, or else by what they are called.

    The loss is the known name that stands most often beside a step, and the step the known name that it stands beside.

    Raises:
        UserError: no column for the step or the loss, or several for the loss; the message names the flag and the
            columns found.
    """
    kept, seen = _gather(records, keys)
    if not seen:
        raise UserError("no logged values found; name a training log, or force its format with --format")
    steps = _steps(kept, keys.step, seen)
    loss = _loss(kept, keys.loss, steps, seen)
    step = _beside(loss, steps) if keys.step is None else next(iter(steps), None)
    if step is None and keys.step is None:
        raise UserError(
            f"no column beside {loss.name!r} is called like a step (found: {_list(seen)}); "
            f"name it with --step-key, or number the points with --step-key {NO_COLUMN}"
        )
    return Columns(
        step=step,
        loss=loss,
        grad_norm=_grad_norm(kept, keys.grad_norm, seen, notes),
        epoch=next((column for column in _known(kept, "epoch") if column is not step), None),
        rank=next(iter(_known(kept, "rank")), None),
    )


def _gather(records: Iterable[Record], keys: Keys) -> tuple[dict[str, Column], dict[str, int]]:
    """The columns that may be wanted, and how often each name was seen."""
    chosen = {words(key) for key in (keys.step, keys.loss, keys.grad_norm) if key is not None}
    kept: dict[str, Column] = {}
    seen: dict[str, int] = {}
    for row, record in enumerate(records):
        for name, value in record:
            column = kept.get(name)
            if column is None:
                if name in seen:
                    seen[name] += 1
                    continue
                seen[name] = int(value is not None)
                if role_of(name) is None and words(name) not in chosen:
                    continue
                column = kept[name] = Column(name)
            found = number(value)
            if found is not None and not (column.rows and column.rows[-1] == row):
                column.rows.append(row)
                column.values.append(found)
    return kept, {name: len(kept[name].rows) if name in kept else count for name, count in seen.items()}


def _known(kept: Mapping[str, Column], role: Role) -> list[Column]:
    """Columns with a value and a name of that role, in order of preference."""
    order = NAMES[role]
    columns = [column for column in kept.values() if column.rows and words(column.name) in order]
    return sorted(columns, key=lambda column: order.index(words(column.name)))


def _alike(kept: Mapping[str, Column], role: Role) -> list[Column]:
    """Columns with a value whose names only end like those of that role."""
    columns = [column for column in kept.values() if column.rows and role_of(column.name) == role]
    return [column for column in columns if words(column.name) not in NAMES[role]]


def _steps(kept: Mapping[str, Column], key: str | None, seen: Mapping[str, int]) -> list[Column]:
    """Columns that may be the step, in order of preference; none where the points are to be numbered."""
    if key == NO_COLUMN:
        return []
    if key is not None:
        return [_named(kept, key, "--step-key", seen)]
    whole_epochs = [c for c in _known(kept, "epoch") if all(value.is_integer() for value in c.values)]
    return [*_known(kept, "step"), *_alike(kept, "step"), *whole_epochs]


def _loss(kept: Mapping[str, Column], key: str | None, steps: Sequence[Column], seen: Mapping[str, int]) -> Column:
    if key is not None:
        return _named(kept, key, "--loss-key", seen)
    for columns in (_known(kept, "loss"), _alike(kept, "loss")):
        beside = {c.name: max((_shared(c, step) for step in steps), default=len(c.rows)) for c in columns}
        candidates = [column for column in columns if 0 < beside[column.name] == max(beside.values())]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(column.name for column in candidates)
            raise UserError(f"several columns may be the training loss ({names}); choose one with --loss-key")
    alone = max(_known(kept, "loss"), key=lambda column: len(column.rows), default=None)
    if alone is not None:
        return alone
    empty = [name for name in kept if not kept[name].rows and role_of(name) == "loss"]
    if empty:
        raise UserError(f"column {empty[0]!r} holds no number; choose another with --loss-key (found: {_list(seen)})")
    raise UserError(f"no column is called like a training loss (found: {_list(seen)}); name it with --loss-key")


def _beside(loss: Column, steps: Sequence[Column]) -> Column | None:
    """The step that most values of ``loss`` stand beside; of equals, the first."""
    best = max(steps, key=lambda step: _shared(loss, step), default=None)
    return best if best is not None and _shared(loss, best) else None


def _shared(one: Column, other: Column) -> int:
    """How many records hold both."""
    return len(one.rows) if one.rows == other.rows else len(set(one.rows).intersection(other.rows))


def _grad_norm(kept: Mapping[str, Column], key: str | None, seen: Mapping[str, int], notes: list[str]) -> Column | None:
    if key is not None:
        return _named(kept, key, "--grad-norm-key", seen)
    known = _known(kept, "grad_norm")
    if known:
        return max(known, key=lambda column: len(column.rows))
    alike = _alike(kept, "grad_norm")
    if len(alike) > 1:
        names = ", ".join(column.name for column in alike)
        notes.append(f"several columns may be the gradient norm ({names}): none is read; choose with --grad-norm-key")
        return None
    return next(iter(alike), None)


def _named(kept: Mapping[str, Column], key: str, flag: str, seen: Mapping[str, int]) -> Column:
    """The column that the user asked for; without case and ``_/-`` if there is none of that very name."""
    found = [c for c in kept.values() if c.name == key] or [c for c in kept.values() if words(c.name) == words(key)]
    if not found or not found[0].rows:
        raise UserError(f"{flag} {key!r}: no column of that name holds a number; found: {_list(seen)}")
    return found[0]


def _list(seen: Mapping[str, int]) -> str:
    """Names, the most frequent first; at most :data:`_SHOWN`."""
    names = sorted(seen, key=lambda name: -seen[name])
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
