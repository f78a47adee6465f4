"""From a file, a folder of TensorBoard events or standard input to a curve."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from lrsweep.errors import UserError
from lrsweep.logs.columns import Keys, Record, choose_columns
from lrsweep.logs.curve import Curve, make_curve
from lrsweep.logs.json_log import json_records, jsonl_records
from lrsweep.logs.tables import csv_records, looks_like_csv, parquet_records
from lrsweep.logs.tensorboard import event_files, event_records, is_event_file
from lrsweep.logs.text_log import text_records

Format = Literal["csv", "jsonl", "json", "parquet", "tensorboard", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
STDIN = "-"
"""The path that stands for standard input."""

_HEAD = 1 << 16
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_log(path: Path | str, *, format: Format | None = None, keys: Keys | None = None) -> Curve:
    """The loss curve in a training log.

    ``path`` is a file, a folder whose TensorBoard event files are one run, or ``-``. The format is told by the content
    unless ``format`` is given, and columns by their names unless ``keys`` has them. NaN and infinity are values of
    the curve. Bytes that are not UTF-8 stand for nothing. Whatever was decided in reading is in the curve's notes.

    Raises:
        UserError: nothing there, not readable, not a log of a known format, or no curve in it: one line that begins
            with ``path``.
    """
    notes: list[str] = []
    try:
        if str(path) != STDIN and Path(path).is_dir():
            format = "tensorboard"
            columns = choose_columns(_folder_records(Path(path), notes), keys or Keys(), notes)
        else:
            with _open(path) as stream:
                format = format or recognise(stream.peek(_HEAD))
                columns = choose_columns(_READERS[format](stream, notes), keys or Keys(), notes)
        return make_curve(columns, name=str(path), format=format, notes=notes)
    except (UserError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def recognise(head: bytes) -> Format:
    """The format of a file that starts with ``head``, some 64 KiB of it.

    Raises:
        UserError: the file is empty, or binary and of no known format.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if is_event_file(head):
        return "tensorboard"
    if b"\0" in head and not head.startswith(_UTF16):
        raise UserError("a binary file that is neither Parquet nor TensorBoard events; name a training log")
    text = head.decode(_encoding(head), errors="replace").strip()
    if not text:
        raise UserError("the file is empty")
    if text.startswith("{") and not text.startswith("{'"):
        first, *others = text.split("\n", 1)
        return "jsonl" if others and _is_json(first) else "json"
    if re.match(r"\[\s*[{\]]", text):
        return "json"
    return "csv" if looks_like_csv(text) else "text"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _open(path: Path | str) -> io.BufferedReader:
    if str(path) == STDIN:
        return io.BufferedReader(io.BytesIO(sys.stdin.buffer.read()), _HEAD)
    return io.BufferedReader(io.FileIO(path), _HEAD)


def _encoding(head: bytes) -> str:
    """UTF-8, or what its byte order mark says: Windows shells redirect into UTF-16."""
    return "utf-16" if head.startswith(_UTF16) else "utf-8-sig"


def _lines(stream: io.BufferedReader, newline: str | None = None) -> io.TextIOWrapper:
    """``stream`` as text; a lone carriage return, as progress bars have it, ends a line."""
    return io.TextIOWrapper(stream, encoding=_encoding(stream.peek(2)), errors="replace", newline=newline)


def _folder_records(folder: Path, notes: list[str]) -> Iterator[Record]:
    files = event_files(folder)
    if not files:
        raise UserError("a folder without TensorBoard event files; name the log files in it themselves")
    for file in files:
        yield from event_records(file.read_bytes(), notes)


_READERS: dict[Format, Callable[[io.BufferedReader, list[str]], Iterable[Record]]] = {
    "csv": lambda stream, notes: csv_records(_lines(stream, newline="")),
    "jsonl": lambda stream, notes: jsonl_records(_lines(stream), notes),
    "json": lambda stream, notes: json_records(_lines(stream).read(), notes),
    "parquet": lambda stream, notes: parquet_records(stream),
    "tensorboard": lambda stream, notes: event_records(stream.read(), notes),
    "text": lambda stream, notes: text_records(_lines(stream), notes),
}
