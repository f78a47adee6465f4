"""Bytes, or a byte-level BPE trained on the training text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrsweep.corpus.documents import SEPARATOR, SplitText

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

Tokenizer = Literal["bytes"] | int
"""``"bytes"``, or the vocabulary size of a BPE."""

BPE_TRAINING_BYTES = 12_000_000
_PIECE_CHARACTERS = 1 << 20
_BATCH_CHARACTERS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedText:
    """Both sides of a corpus as token ids."""

    train: NDArray[Any]
    """Training tokens."""
    heldout: NDArray[Any]
    """Held-out tokens, of the same dtype."""
    vocab_size: int
    """Every id is below it."""
    tokenizer: str
    """``bytes``, ``bpe-N``, or ``ids`` for ready token ids."""
    bytes_per_token: float
    """Bytes of training text, a separator counted as one, over training tokens; NaN for ready token ids."""
    tokenizer_json: str | None = None
    """The BPE as the ``tokenizers`` library stores it."""


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """uint16 where every id fits, otherwise uint32."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def tokenize(text: SplitText, tokenizer: Tokenizer) -> TokenizedText:
    """Token ids of both sides.

    Bytes: each byte is its own id, and the zero byte ends every document. BPE: byte-level with GPT-2's
    division into words, trained on the first 12 MB of the training side; the last id of the vocabulary ends
    every document.
    """
    if tokenizer == "bytes":
        train, heldout = (np.frombuffer(side, np.uint8).astype(np.uint16) for side in (text.train, text.heldout))
        return TokenizedText(train=train, heldout=heldout, vocab_size=256, tokenizer="bytes", bytes_per_token=1.0)
    bpe = train_bpe(text.train[:BPE_TRAINING_BYTES], tokenizer)
    train, heldout = (encode_bpe(bpe, side, tokenizer) for side in (text.train, text.heldout))
    return TokenizedText(
        train=train,
        heldout=heldout,
        vocab_size=tokenizer,
        tokenizer=f"bpe-{tokenizer}",
        bytes_per_token=len(text.train) / max(1, len(train)),
        tokenizer_json=bpe.to_str(),
    )


def train_bpe(text: bytes, vocab_size: int) -> HFTokenizer:
    """A byte-level BPE of ``vocab_size`` - 1 entries; the id above them is the separator's.

    It has fewer entries where the text has no more pairs to merge. Equal text gives an equal BPE.
    """
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = HFTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    # The text may have been cut within a character.
    bpe.train_from_iterator(text.decode("utf-8", "ignore").split(SEPARATOR.decode()), trainer)
    return bpe


def encode_bpe(bpe: HFTokenizer, text: bytes, vocab_size: int) -> NDArray[Any]:
    """Ids of ``text``, with ``vocab_size`` - 1 in the place of each separator.

    A document of more than 2**20 characters is encoded in pieces of that length, which bounds the memory.
    """
    dtype = token_dtype(vocab_size)
    separator = np.array([vocab_size - 1], dtype)
    ids = [np.empty(0, dtype)]
    for batch in _batches(text.decode("utf-8")):
        encodings = bpe.encode_batch_fast([piece for piece, _ in batch])
        for encoding, (_, ends_document) in zip(encodings, batch, strict=True):
            ids.append(np.array(encoding.ids, dtype))
            if ends_document:
                ids.append(separator)
    return np.concatenate(ids)


def _batches(text: str) -> Iterator[list[tuple[str, bool]]]:
    """Pieces to encode at one time, each with whether its document ends there."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in text.split(SEPARATOR.decode())[:-1]:
        for start in range(0, max(1, len(document)), _PIECE_CHARACTERS):
            end = start + _PIECE_CHARACTERS
            batch.append((document[start:end], end >= len(document)))
            size += len(batch[-1][0])
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    yield batch


def unigram_entropy(tokens: NDArray[Any], vocab_size: int) -> float:
    """Entropy in nats of the ids' frequencies: the lowest loss without context. NaN without tokens."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), 1 << 24):
        counts += np.bincount(tokens[start : start + (1 << 24)], minlength=vocab_size)
    if not len(tokens):
        return float("nan")
    p = counts[counts > 0] / len(tokens)
    return float(0.0 - (p * np.log(p)).sum())
