"""JSON: a record a line, or one document with the records somewhere in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lrsweep.errors import UserError
from lrsweep.logs.columns import Record


def flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names and values; those of an object within are ``outer/inner``."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def jsonl_records(lines: Iterable[str], notes: list[str]) -> Iterator[Record]:
    """One record for each line that is a JSON object; other lines are counted in a note."""
    other = 0
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            yield flat(entry)
        else:
            other += bool(line.strip())
    if other:
        notes.append(f"{other} lines are not JSON objects and are left out")


def json_records(text: str, notes: list[str]) -> Iterator[Record]:
    """The records of one document, in the first of these forms that it has.

    ``{"log_history": [...]}`` as ``trainer_state.json`` of transformers;
    ``{"lm loss": {"step_interval": 5, "values": {"5": 10.9, ...}}}`` as the golden values of Megatron-LM; an object of
    lists of equal length; or, at any depth, the longest list of objects. An object without any is a record itself.

    Raises:
        UserError: the text is not JSON.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UserError(f"not valid JSON ({error}); --format jsonl or text reads it otherwise") from None
    if isinstance(document, dict):
        if isinstance(document.get("log_history"), list):
            yield from _log_history(document["log_history"], notes)
            return
        golden = {name: metric["values"] for name, metric in document.items() if _is_golden(metric)}
        if golden:
            yield from _golden(golden)
            return
        columns = {name: values for name, values in document.items() if isinstance(values, list) and values}
        if len(columns) > 1 and not any(isinstance(values[0], dict) for values in columns.values()):
            yield from (zip(columns, row, strict=True) for row in zip(*columns.values(), strict=False))
            return
    itself = [document] if isinstance(document, dict) else []
    longest: list[dict[str, Any]] = max(_lists_of_objects(document), key=len, default=itself)
    yield from map(flat, longest)


def _is_golden(metric: Any) -> bool:
    return isinstance(metric, dict) and "step_interval" in metric and isinstance(metric.get("values"), dict)


def _golden(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Record]:
    """Values by step, by metric. The text "nan" stands in for a step that has none (its ``common.py``)."""
    for name, values in metrics.items():
        yield from ([("step", step), (name, value)] for step, value in values.items() if value != "nan")


def _log_history(entries: Iterable[Any], notes: list[str]) -> Iterator[Record]:
    """Entries of transformers' ``Trainer``. Its ``logging_nan_inf_filter`` logs a NaN loss as 0.0.

    Where the gradient norm is logged, it tells such a 0 from a real one; where it is not, a 0 is taken for NaN.
    """
    hidden = 0
    for entry in entries:
        if entry.get("loss") == 0 and "grad_norm" not in entry:
            entry = {**entry, "loss": math.nan}
            hidden += 1
        yield flat(entry)
    if hidden:
        notes.append(f"{hidden} losses of exactly 0 are read as NaN: transformers logs a NaN loss as 0.0")


def _lists_of_objects(value: Any) -> Iterator[list[dict[str, Any]]]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _lists_of_objects(inner)
    elif isinstance(value, list):
        if value and all(isinstance(item, dict) for item in value):
            yield value
        else:
            for inner in value:
                yield from _lists_of_objects(inner)
