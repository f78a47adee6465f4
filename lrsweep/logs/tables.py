"""Tables: CSV and its kin, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from lrsweep.errors import UserError
from lrsweep.logs.columns import Record
from lrsweep.logs.names import role_of
from lrsweep.logs.numbers import number

_DELIMITERS = ",\t;"


def delimiter_of(header: str) -> str:
    """The one of comma, tab and semicolon that a header has most of."""
    return max(_DELIMITERS, key=header.count)


def looks_like_csv(head: str) -> bool:
    """Whether ``head``, the start of a file, is a header of names over rows of numbers with as many cells."""
    lines = [line for line in head.splitlines() if line.strip()][:4]
    names, *rows = csv.reader(lines, delimiter=delimiter_of(lines[0]))
    if len(names) < 2 or any(number(name) is not None for name in names):
        return False
    if not rows:
        return any(role_of(name) is not None for name in names)
    has_number = any(number(cell) is not None for cell in rows[0])
    return has_number and all(len(row) == len(names) for row in rows[:-1] or rows)  # the last may be cut short


def csv_records(lines: Iterable[str]) -> Iterator[Record]:
    """One record for each row; the first line that is not blank names the columns, and may begin with ``#``."""
    lines = iter(lines)
    header = next((line for line in lines if line.strip()), "").lstrip("# ")
    delimiter = delimiter_of(header)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    yield [(name, None) for name in names]  # makes them known even if no row follows
    for row in csv.reader(lines, delimiter=delimiter):
        yield zip(names, row, strict=False)


def parquet_records(stream: BinaryIO) -> Iterator[Record]:
    """One record for each row, of the numeric columns; null was not logged, NaN is a value.

    Raises:
        UserError: the file is cut short or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(stream.read()))
    except pa.ArrowException as error:
        raise UserError(f"not a whole Parquet file ({str(error).splitlines()[0]})") from None
    fields = file.schema_arrow
    names = [f.name for f in fields if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    for batch in file.iter_batches(columns=names):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield zip(names, row, strict=True)
