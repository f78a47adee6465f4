"""Reading ``--data``: text files, JSONL, Parquet, folders of them, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NoReturn

from lrsweep.corpus.documents import Document, character_start, file_document, row_document
from lrsweep.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def list_files(root: Path) -> list[Path]:
    """``root`` itself, or the files below it, sorted by relative path; hidden files and folders are left out.

    Raises:
        UserError: ``root`` does not exist, cannot be read, or is neither a file nor a folder with files.
    """
    try:
        mode = root.stat().st_mode
        if stat.S_ISREG(mode):
            return [root]
        found = []
        for folder, subfolders, names in os.walk(root, onerror=_raise):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        files = [path for path in found if path.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data {root} does not exist or is no file; name a file, a folder or hf:NAME") from None
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from None
    if not files:
        raise UserError(f"--data {root} is a folder without files; name one that holds text")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def read_files(root: Path, files: list[Path], *, text_column: str, max_bytes: int) -> Iterator[Document]:
    """The documents of ``files``: every row of JSONL (``.jsonl``, ``.ndjson``) and Parquet, every other file.

    Below a folder, a file that is not UTF-8 text counts as an empty document. Of a text file no more is read
    than shows that it is longer than ``max_bytes``.

    Raises:
        UserError: a file cannot be read, is not what its name says, or lacks ``text_column``.
    """
    for path in files:
        try:
            if path.suffix == ".parquet":
                yield from _parquet_rows(path, text_column)
            elif path.suffix in (".jsonl", ".ndjson"):
                yield from _jsonl_rows(path, text_column)
            elif path == root:
                yield file_document(path.name, _text(path, max_bytes))
            else:
                yield file_document(path.relative_to(root).as_posix(), _text_or_nothing(path, max_bytes))
        except OSError as error:
            raise unreadable(path, error) from None


def read_hub(spec: str, *, text_column: str) -> Iterator[Document]:
    """The rows of ``NAME[:CONFIG[:SPLIT]]`` (split ``train`` unless given), streamed by ``datasets``.

    Raises:
        UserError: ``datasets`` is not installed or cannot load the name, or a row lacks ``text_column``.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f'--data hf:{spec} needs the datasets library: pip install "lrsweep[hf]"') from None
    name, config, split, *rest = [*spec.split(":"), "", ""]
    if not name or any(rest):
        raise UserError(f"--data hf:{spec} is not of the form hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    try:
        rows = load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _document(row, text_column, f"--data hf:{spec} row {number}")
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--data hf:{spec} could not be loaded: {_first_line(error)}") from None


def unreadable(path: Path, error: OSError) -> UserError:
    """The one line for a file that the system does not let us read."""
    # pyarrow's errors carry the number alone.
    what = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"--data {path} cannot be read: {what}; check its permissions")


def _raise(error: OSError) -> NoReturn:
    raise error


def _text(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        text = file.read(max_bytes + 4)
    if len(text) > max_bytes + 1:
        text = text[: character_start(text, max_bytes + 1)]
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_text(path) from None
    if b"\0" in text:
        raise _not_text(path)
    return text.removeprefix(_BYTE_ORDER_MARK)


def _text_or_nothing(path: Path, max_bytes: int) -> bytes:
    try:
        return _text(path, max_bytes)
    except UserError:
        return b""


def _not_text(path: Path) -> UserError:
    return UserError(f"--data {path} is neither UTF-8 text nor .jsonl, .parquet or .bin; convert or decompress it")


def _jsonl_rows(path: Path, column: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"--data {path} line {number}"
            line = line.removeprefix(_BYTE_ORDER_MARK).strip()
            if not line:
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is not JSON ({_first_line(error)}); mend or remove it") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is not a JSON object; every line must be one")
            yield from _document(row, column, where)


def _parquet_rows(path: Path, column: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(column, file.schema_arrow.names, f"--data {path}")
            for batch in file.iter_batches(columns=[column], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    yield from _document({column: value}, column, f"--data {path}")
    except PermissionError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"--data {path} is cut short or not Parquet ({_first_line(error)}); write it anew") from None


def _document(row: dict[str, Any], column: str, where: str) -> Iterator[Document]:
    """The row's document; none where its text is null."""
    if column not in row:
        raise _no_column(column, row, where)
    value = row[column]
    if value is None:
        return
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f'{where}: "{column}" holds {kind}, not text; name another with --text-column')
    # JSON can spell a lone surrogate, which has no UTF-8.
    yield row_document(value.encode("utf-8", "replace"))


def _no_column(column: str, names: Iterable[str], where: str) -> UserError:
    nearest = sorted(names, key=lambda name: -SequenceMatcher(None, name.lower(), column.lower()).ratio())
    listed = ", ".join(nearest[:8]) + (", …" if len(nearest) > 8 else "")
    return UserError(f'{where} has no "{column}"; name one with --text-column: {listed or "it has none"}')


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
