"""``.bin`` files of token ids: nanoGPT's raw uint16, and the headed files of llm.c and modded-nanogpt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.corpus.documents import heldout_ranges, outside
from lrsweep.corpus.sources import unreadable
from lrsweep.corpus.tokenize import TokenizedText, token_dtype
from lrsweep.errors import UserError

# llm.c, dev/data/data_common.py: 256 int32 (magic, version, number of tokens, zeros), then the tokens.
_HEADER_BYTES = 1024
_MAGIC: dict[int, np.dtype[Any]] = {20240520: np.dtype(np.uint16), 20240801: np.dtype(np.uint32)}
MAX_VOCAB = 2**20


def read_token_files(paths: list[Path], *, max_bytes: int) -> tuple[TokenizedText, bool]:
    """The first ``max_bytes`` bytes of ids of the files, end to end, and whether there are more.

    Ids are uint32 where llm.c's header for Llama (magic 20240801) says so or the name ends in ``u32.bin`` or
    ``uint32.bin``, otherwise uint16. The vocabulary is the largest id + 1, rounded up to a multiple of 64.
    The four slices of 1% that begin at 12, 37, 62 and 87% are held out.

    Raises:
        UserError: a file is empty, cut short, no whole number of ids long, or holds ids of 2**20 and above.
    """
    parts = []
    n_there = 0
    for path in paths:
        try:
            layout = _layout(path)
            count = min(layout.n_tokens, max_bytes // layout.dtype.itemsize)
            ids = np.fromfile(path, layout.dtype, count=count, offset=layout.start)
        except OSError as error:
            raise unreadable(path, error) from None
        if layout.start == 0 and layout.dtype == np.uint16 and _looks_like_uint32(ids):
            raise UserError(f"--data {path} looks like uint32 ids; rename it to {path.stem}.uint32.bin")
        parts.append(ids)
        n_there += layout.n_tokens
        max_bytes -= ids.nbytes
    tokens = np.concatenate(parts)
    vocab_size = 64 * math.ceil((int(tokens.max(initial=0)) + 1) / 64)
    if vocab_size > MAX_VOCAB:
        raise UserError(
            f"--data {paths[0]} holds ids up to {tokens.max():,}, beyond any vocabulary; it is not a file of "
            f"{tokens.dtype} token ids"
        )
    train, heldout = (
        np.concatenate([tokens[a:b] for a, b in ranges]).astype(token_dtype(vocab_size), copy=False)
        for ranges in (outside(heldout_ranges(len(tokens)), len(tokens)), heldout_ranges(len(tokens)))
    )
    ids_alone = TokenizedText(
        train=train, heldout=heldout, vocab_size=vocab_size, tokenizer="ids", bytes_per_token=math.nan
    )
    return ids_alone, len(tokens) < n_there


@dataclass(frozen=True, slots=True)
class _Layout:
    dtype: np.dtype[Any]
    start: int
    n_tokens: int


def _layout(path: Path) -> _Layout:
    size = path.stat().st_size
    head = np.fromfile(path, dtype="<i4", count=3)
    if size >= _HEADER_BYTES and int(head[0]) in _MAGIC:
        dtype, start, stated = _MAGIC[int(head[0])], _HEADER_BYTES, int(head[2])
        if size != start + stated * dtype.itemsize:
            found = (size - start) // dtype.itemsize
            raise UserError(f"--data {path} is damaged: its header says {stated:,} tokens, it holds {found:,}")
    else:
        dtype, start = np.dtype(np.uint32 if path.stem.endswith(("u32", "uint32")) else np.uint16), 0
    if size == start:
        raise UserError(f"--data {path} is empty; give a file with token ids")
    if (size - start) % dtype.itemsize:
        raise UserError(
            f"--data {path} is {size:,} bytes long, not a whole number of {dtype} ids; it is cut short or no token file"
        )
    return _Layout(dtype, start, (size - start) // dtype.itemsize)


def _looks_like_uint32(tokens: NDArray[Any]) -> bool:
    """Whether every second word could be the high half of an id below 2**20 and the others could not."""
    low, high = tokens[: 2**16 : 2], tokens[1 : 2**16 : 2]
    return len(high) > 0 and int(high.max()) < MAX_VOCAB >> 16 <= int(low.max())
