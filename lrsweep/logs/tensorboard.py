"""TensorBoard's event files, read without TensorBoard.

A file is a chain of records: length (8 bytes), its checksum (4), data, checksum of the data (4). The data is a
protocol buffer ``Event``; of its fields only the step and the scalar summaries are read. Format:
``tensorflow/core/lib/io/record_writer.h``, ``tensorflow/core/util/event.proto``, ``framework/summary.proto`` and
``framework/tensor.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from lrsweep.logs.columns import Record

_HEADER, _FOOTER = 12, 4
_NUMBERS = {1: "<f", 2: "<d"}
"""``TensorProto.dtype`` → how its number is packed, for float and double."""


def is_event_file(head: bytes) -> bool:
    """Whether the first record of a file, of which ``head`` is the start, has a length with the right checksum."""
    return len(head) >= _HEADER and _length(head, 0) is not None


def event_files(folder: Path) -> list[Path]:
    """Event files right in ``folder``, in the order in which they were begun."""
    return sorted(path for path in folder.glob("*tfevents*") if path.is_file())


def run_folders(folder: Path) -> list[Path]:
    """``folder`` and every folder in it, at any depth, that holds event files."""
    return sorted({path.parent for path in folder.rglob("*tfevents*") if path.is_file()})


def event_records(data: bytes, notes: list[str]) -> Iterator[Record]:
    """One record for each event with scalars: its ``step``, and the value of each tag.

    What comes after a record that is cut short or whose length is corrupt cannot be read; a note says so.
    """
    at = 0
    while at < len(data):
        length = _length(data, at)
        start = at + _HEADER
        if length is None or start + length + _FOOTER > len(data):
            what = "is corrupt" if length is None and start <= len(data) else "is cut short"
            notes.append(f"the record at byte {at} of {len(data)} {what}: it and what follows are left out")
            return
        at = start + length + _FOOTER
        yield _event(data[start : start + length])


def _length(data: bytes, at: int) -> int | None:
    """Length of the record at ``at``; None where it is cut short or its checksum is wrong."""
    header = data[at : at + _HEADER]
    if len(header) < _HEADER or _masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
        return None
    return int.from_bytes(header[:8], "little")


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(message: bytes) -> list[tuple[str, object]]:
    step, summaries = 0, []
    for number, content in _fields(message):
        if number == 2 and isinstance(content, int):
            step = content
        elif number == 5 and isinstance(content, bytes):
            summaries += [value for field, value in _fields(content) if field == 1 and isinstance(value, bytes)]
    scalars = [scalar for scalar in map(_scalar, summaries) if scalar is not None]
    return [("step", step), *scalars] if scalars else []


def _scalar(message: bytes) -> tuple[str, float] | None:
    """Tag and value of a ``Summary.Value``, be it a plain float or a tensor of one number; None for any other."""
    value = dict(_fields(message))
    tag = value.get(1)
    if not isinstance(tag, bytes):
        return None
    plain, tensor = value.get(2), value.get(8)
    packed, number = "<f", plain
    if isinstance(tensor, bytes):
        parts = dict(_fields(tensor))
        packed = _NUMBERS.get(parts.get(1, 0), "")  # type: ignore[arg-type]
        number = parts.get(4) or parts.get(5) or parts.get(6)
    if not packed or not isinstance(number, bytes) or len(number) != struct.calcsize(packed):
        return None
    return tag.decode(errors="replace"), struct.unpack(packed, number)[0]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and content of each field of a protocol buffer: an integer, or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
        else:
            size, at = ({1: 8, 5: 4}[kind], at) if kind in (1, 5) else _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at``, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
