"""Which tokens a step sees: pure functions of the data seed, so that all trials of a sweep see the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrsweep.corpus.cache import Corpus
from lrsweep.errors import UserError


def batch_offsets(n_tokens: int, seq_len: int, batch_size: int, steps: int, data_seed: int) -> NDArray[np.int64]:
    """Start positions [steps, batch_size] of training windows ``tokens[start : start + seq_len + 1]``.

    Every epoch goes once through all non-overlapping windows, in an order of its own; what an epoch leaves
    over begins the batch that the next one completes. No row depends on a later one: a longer run begins with
    the same batches.

    Raises:
        UserError: there are fewer windows than one batch needs.
    """
    n_windows = max(0, n_tokens - 1) // seq_len
    if n_windows < batch_size:
        raise UserError(
            f"{n_tokens:,} training tokens hold {n_windows:,} windows of {seq_len}, one batch needs "
            f"{batch_size:,}; give more text with --data, or lower --batch-size"
        )
    n_epochs = -(-steps * batch_size // n_windows)
    epochs = [_permutation(n_windows, data_seed, epoch) for epoch in range(n_epochs)]
    windows = np.concatenate([np.empty(0, np.int64), *epochs])[: steps * batch_size]
    return windows.reshape(steps, batch_size) * seq_len


def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # PCG64's raw words are the same in every version of NumPy; what Generator makes of them need not be.
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def heldout_windows(corpus: Corpus, seq_len: int, n_tokens: int = 32_768) -> NDArray[np.int64]:
    """Token ids [n, seq_len + 1] of the fixed held-out windows, in the order of the text.

    They predict at least ``n_tokens`` tokens and are spread evenly; all windows where there are fewer.

    Raises:
        UserError: the held-out text is shorter than one window.
    """
    n_windows = max(0, len(corpus.heldout_tokens) - 1) // seq_len
    if n_windows == 0:
        raise UserError(
            f"{len(corpus.heldout_tokens):,} held-out tokens hold no window of {seq_len} + 1 tokens; "
            "give more text with --data"
        )
    n = min(n_windows, -(-n_tokens // seq_len))
    starts = np.arange(n) * n_windows // n * seq_len
    return np.asarray(corpus.heldout_tokens[starts[:, None] + np.arange(seq_len + 1)], dtype=np.int64)
