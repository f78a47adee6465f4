"""The order of the data, and the held-out windows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsweep.corpus import batch_offsets, heldout_windows, load_corpus
from lrsweep.errors import UserError

shapes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 40), st.integers(0, 20), st.integers(0, 2**40))


def n_tokens_for(n_windows: int, seq_len: int, extra: int) -> int:
    return n_windows * seq_len + 1 + extra % seq_len


@given(shapes, st.integers(0, 8))
def test_every_window_once_an_epoch(shape: tuple[int, int, int, int, int], extra: int) -> None:
    seq_len, batch_size, steps, more_windows, seed = shape
    n_windows = batch_size + more_windows
    n_tokens = n_tokens_for(n_windows, seq_len, extra)
    offsets = batch_offsets(n_tokens, seq_len, batch_size, steps, seed)
    assert offsets.shape == (steps, batch_size)
    assert offsets.dtype == np.int64
    flat = offsets.ravel()
    windows = [seq_len * w for w in range(n_windows)]
    for start in range(0, len(flat), n_windows):
        epoch = flat[start : start + n_windows]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(windows)
        if len(epoch) == n_windows:
            assert sorted(epoch) == windows
    # The last window has its targets, and one more would not.
    assert windows[-1] + seq_len + 1 <= n_tokens < windows[-1] + 2 * seq_len + 1


@given(shapes, st.integers(0, 30))
def test_a_longer_run_begins_with_the_same_batches(shape: tuple[int, int, int, int, int], more_steps: int) -> None:
    seq_len, batch_size, steps, more_windows, seed = shape
    n_tokens = n_tokens_for(batch_size + more_windows, seq_len, 0)
    short = batch_offsets(n_tokens, seq_len, batch_size, steps, seed)
    long = batch_offsets(n_tokens, seq_len, batch_size, steps + more_steps, seed)
    assert np.array_equal(long[:steps], short)


def test_seeds_and_epochs_differ() -> None:
    first, second = (batch_offsets(6401, 64, 10, 20, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:10], first[10:])
    assert np.array_equal(first, batch_offsets(6401, 64, 10, 20, 0))


def test_order_is_the_one_written_down_here() -> None:
    """The order of the data is part of a published result, so it must not move between versions."""
    expected = [np.argsort(np.random.PCG64([7, epoch]).random_raw(5)) for epoch in (0, 1)]
    assert batch_offsets(16, 3, 2, 5, 7).ravel().tolist() == (3 * np.concatenate(expected)).tolist()
    assert batch_offsets(16, 3, 2, 5, 7).tolist() == [[9, 12], [0, 6], [3, 3], [9, 6], [12, 0]]


def test_first_places_are_uniform() -> None:
    first = Counter(int(batch_offsets(41, 10, 1, 1, seed)[0, 0]) for seed in range(4000))
    # Four windows, 1,000 expected each, standard deviation 27.
    assert set(first) == {0, 10, 20, 30}
    assert all(abs(n - 1000) < 140 for n in first.values())


def test_too_few_windows_for_a_batch() -> None:
    with pytest.raises(UserError, match=r"64 training tokens hold 7 windows of 8, one batch needs 8.*--data"):
        batch_offsets(64, 8, 8, 1, 0)
    assert batch_offsets(65, 8, 8, 1, 0).shape == (1, 8)
    with pytest.raises(UserError, match="hold 0 windows"):
        batch_offsets(0, 8, 1, 1, 0)


@pytest.mark.parametrize(("seq_len", "n_tokens"), [(7, 100), (10, 95), (64, 10**9), (1, 1)])
def test_heldout_windows_are_fixed_and_even(tmp_path: Path, seq_len: int, n_tokens: int) -> None:
    (tmp_path / "text.txt").write_bytes(np.random.default_rng(0).integers(97, 123, 40_000, np.uint8).tobytes())
    corpus = load_corpus(str(tmp_path / "text.txt"), cache_dir=tmp_path / "cache")
    windows = heldout_windows(corpus, seq_len, n_tokens)
    there = (len(corpus.heldout_tokens) - 1) // seq_len
    n = min(there, -(-n_tokens // seq_len))
    assert windows.shape == (n, seq_len + 1)
    assert windows.dtype == np.int64
    assert n * seq_len >= min(n_tokens, there * seq_len)
    starts = [i * there // n * seq_len for i in range(n)]
    for window, start in zip(windows, starts, strict=True):
        assert np.array_equal(window, corpus.heldout_tokens[start : start + seq_len + 1])
    gaps = np.diff([*starts, there * seq_len])
    assert gaps.min() >= seq_len
    assert gaps.max() - gaps.min() <= seq_len


def test_heldout_text_shorter_than_a_window(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("word " * 100)
    corpus = load_corpus(str(tmp_path / "text.txt"), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"hold no window of 64 \+ 1 tokens; give more text with --data"):
        heldout_windows(corpus, 64)
