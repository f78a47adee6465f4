"""A tokenised corpus on disk: written once, mapped into memory by every process that uses it.

::

    $LRSWEEP_CACHE/corpus/<key>/
      train.npy  heldout.npy      token ids
      corpus.json                 vocabulary size, hash, entropy
      tokenizer.json              the BPE, where there is one
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.corpus.tokenize import TokenizedText, unigram_entropy
from lrsweep.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Token ids to train on and to evaluate on.

    The arrays are read-only maps of files, shared by all processes. Pickling passes the folder, not the
    tokens.
    """

    train_tokens: NDArray[Any]
    """Training tokens, uint16 or uint32."""
    heldout_tokens: NDArray[Any]
    """Tokens that no trial trains on, of the same dtype."""
    vocab_size: int
    """Every id is below it."""
    tokenizer: str
    """``bytes``, ``bpe-N``, or ``ids`` for ready token ids."""
    data_hash: str
    """16 hex digits over the ids of both sides, the vocabulary size and the tokenizer."""
    source: str
    """What the text is, in one line."""
    unigram_entropy: float
    """Entropy in nats of the training tokens' frequencies."""
    bytes_per_token: float
    """Bytes of training text over training tokens; NaN for ready token ids."""
    folder: Path
    """Where the files lie."""

    def __reduce__(self) -> tuple[Callable[[Path, str], Corpus], tuple[Path, str]]:
        return open_corpus, (self.folder, self.source)


def default_cache_dir() -> Path:
    """``$LRSWEEP_CACHE``, or ``~/.cache/lrsweep``."""
    return Path(os.environ.get("LRSWEEP_CACHE") or "~/.cache/lrsweep").expanduser()


def open_corpus(folder: Path, source: str) -> Corpus:
    """Map the corpus that lies in ``folder``.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        return Corpus(
            train_tokens=np.load(folder / "train.npy", mmap_mode="r"),
            heldout_tokens=np.load(folder / "heldout.npy", mmap_mode="r"),
            source=source,
            folder=folder,
            **json.loads((folder / "corpus.json").read_text(encoding="utf-8")),
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cached corpus {folder} cannot be read ({error}); delete that folder and it is made anew, or on "
            "several machines set LRSWEEP_CACHE to a folder that all of them see"
        ) from None


def write_corpus(folder: Path, tokens: TokenizedText) -> None:
    """Write under a temporary name and rename it to ``folder``; if that exists by then, it stays.

    Raises:
        UserError: the folder cannot be written; nothing is left of it.
    """
    about = {
        "vocab_size": tokens.vocab_size,
        "tokenizer": tokens.tokenizer,
        "data_hash": _data_hash(tokens),
        "unigram_entropy": unigram_entropy(tokens.train, tokens.vocab_size),
        "bytes_per_token": tokens.bytes_per_token,
    }
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.mkdir(parents=True)
        np.save(temporary / "train.npy", tokens.train)
        np.save(temporary / "heldout.npy", tokens.heldout)
        (temporary / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if tokens.tokenizer_json is not None:
            (temporary / "tokenizer.json").write_text(tokens.tokenizer_json, encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"cannot write the corpus cache {folder.parent} ({error.strerror or error}); "
            "set LRSWEEP_CACHE to a folder with room that can be written"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _data_hash(tokens: TokenizedText) -> str:
    digest = hashlib.sha256(f"{tokens.tokenizer} {tokens.vocab_size} {len(tokens.train)}\n".encode())
    for side in (tokens.train, tokens.heldout):
        digest.update(np.ascontiguousarray(side).data)
    return digest.hexdigest()[:16]
