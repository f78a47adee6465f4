"""Documents, and which of them are held out.

Everything that is read becomes documents, and everything that is tokenised is one ``bytes`` object a side, in
which every document ends with a zero byte. Text files hold no zero byte of their own, so that byte is the
separator; one inside a JSONL or Parquet row divides the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SEPARATOR = b"\0"
HELDOUT_SHARE = 0.04
_LEAST_SHARE = 0.03
MIN_DOCUMENTS = 20
_HELDOUT_PERCENTS = (12, 37, 62, 87)


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the hash that decides its side and its place."""

    rank: bytes
    """SHA-256 of the relative path of a file, or of the text of a row."""
    text: bytes
    """UTF-8; empty for a file that holds no text."""


def file_document(relative_path: str, text: bytes) -> Document:
    """A file keeps its side while its text changes, and while other files come and go."""
    return Document(hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest(), text)


def row_document(text: bytes) -> Document:
    """A row has no name: its text decides, so that it keeps its side while other rows come and go."""
    return Document(hashlib.sha256(text).digest(), text)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitText:
    """Training and held-out text, each document ended by :data:`SEPARATOR`."""

    train: bytes
    """Text to train on."""
    heldout: bytes
    """Text that no trial trains on."""
    n_documents: int
    """Documents kept, both sides together."""
    n_dropped: int
    """Documents left out because they are empty, no text, or the same as an earlier one."""
    truncated: bool
    """Whether there was more text than ``max_bytes``."""


def split_documents(documents: Iterable[Document], *, max_bytes: int) -> SplitText:
    """Drop empty and repeated documents, keep the first ``max_bytes`` bytes, and hold out about 4%.

    From 20 documents on, whole documents are held out: those whose rank, read as a fraction, is below 0.04,
    and after them the next in rank until they hold 3% of the text. Both sides stand in the order of the
    ranks, which mixes neighbouring domains. Fewer documents are joined in their own order and cut like one
    text: the four slices of 1% that begin at 12, 37, 62 and 87% are held out.
    """
    kept: list[Document] = []
    seen = set()
    room, n_dropped, truncated = max_bytes, 0, False
    for document in documents:
        digest = hashlib.sha256(document.text).digest()
        if not document.text or digest in seen:
            n_dropped += 1
            continue
        seen.add(digest)
        truncated = len(document.text) > room
        head = document.text[: character_start(document.text, room)]
        room -= len(head)
        if head:
            kept.append(Document(document.rank, head))
        if truncated:
            break
    train, heldout = _by_document(kept) if len(kept) >= MIN_DOCUMENTS else _by_slice(_join(kept))
    return SplitText(train=train, heldout=heldout, n_documents=len(kept), n_dropped=n_dropped, truncated=truncated)


def _by_document(documents: list[Document]) -> tuple[bytes, bytes]:
    documents = sorted(documents, key=lambda d: d.rank)
    enough = _LEAST_SHARE * sum(len(d.text) for d in documents)
    n = size = 0
    while size < enough or int.from_bytes(documents[n].rank[:8], "big") < HELDOUT_SHARE * 2**64:
        size += len(documents[n].text)
        n += 1
    return _join(documents[n:]), _join(documents[:n])


def _by_slice(text: bytes) -> tuple[bytes, bytes]:
    held = [(character_start(text, a), character_start(text, b)) for a, b in heldout_ranges(len(text))]

    def pick(parts: Iterable[tuple[int, int]]) -> bytes:
        return b"".join(text[a:b].removesuffix(SEPARATOR) + SEPARATOR for a, b in parts if a < b)

    return pick(outside(held, len(text))), pick(held)


def _join(documents: Iterable[Document]) -> bytes:
    return b"".join(d.text + SEPARATOR for d in documents)


def heldout_ranges(n: int) -> list[tuple[int, int]]:
    """The parts of one undivided text or token stream of length ``n`` that are held out: four times 1%."""
    return [(n * p // 100, n * (p + 1) // 100) for p in _HELDOUT_PERCENTS]


def outside(ranges: list[tuple[int, int]], n: int) -> Iterator[tuple[int, int]]:
    """What sorted ``ranges`` leave of ``[0, n)``."""
    ends = [0, *(end for _, end in ranges)]
    starts = [*(start for start, _ in ranges), n]
    return zip(ends, starts, strict=True)


def character_start(text: bytes, position: int) -> int:
    """The last position at or before ``position`` where a UTF-8 character of ``text`` begins."""
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
        position -= 1
    return position
