"""Text to token ids and back, and the entropy of what comes out."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lrsweep.corpus import unigram_entropy
from lrsweep.corpus.documents import SplitText, row_document, split_documents
from lrsweep.corpus.tokenize import encode_bpe, token_dtype, tokenize, train_bpe

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


def split(train: str, heldout: str) -> SplitText:
    return SplitText(train=train.encode(), heldout=heldout.encode(), n_documents=2, n_dropped=0, truncated=False)


@given(texts, texts)
def test_bytes_round_trip(train: str, heldout: str) -> None:
    tokens = tokenize(split(train + "\0", heldout + "\0"), "bytes")
    assert bytes(tokens.train.tolist()).decode() == train + "\0"
    assert bytes(tokens.heldout.tolist()).decode() == heldout + "\0"
    assert (tokens.vocab_size, tokens.bytes_per_token) == (256, 1.0)


@settings(max_examples=30)
@given(st.lists(texts, min_size=1, max_size=5))
def test_bpe_round_trip(documents: list[str]) -> None:
    text = "".join(d + "\0" for d in documents)
    tokens = tokenize(split("the cat sat on the mat\0" * 5, text), 300)
    assert tokens.tokenizer_json is not None
    bpe = Tokenizer.from_str(tokens.tokenizer_json)
    ends = np.flatnonzero(tokens.heldout == 299)
    parts = np.split(tokens.heldout, ends + 1)
    assert len(parts.pop()) == 0
    assert [bpe.decode(part[:-1].tolist()) for part in parts] == documents


def test_bpe_merges_what_is_frequent() -> None:
    tokens = tokenize(split("abab " * 2000 + "\0", "abab abab\0"), 262)
    assert tokens.bytes_per_token > 4
    assert tokens.train.max() == 261
    assert np.count_nonzero(tokens.train == 261) == 1
    assert tokens.bytes_per_token == 10_001 / len(tokens.train)


def test_no_text_is_special() -> None:
    tokens = tokenize(split("a<|endoftext|>b\0" * 3, "<|endoftext|>\0"), 400)
    assert np.count_nonzero(tokens.train == 399) == 3
    assert np.count_nonzero(tokens.heldout == 399) == 1


def test_long_documents_are_encoded_in_pieces() -> None:
    text = ("é" * (2**20 + 5) + "\0" + "x\0").encode()
    bpe = train_bpe(b"xyz", 257)
    ids = encode_bpe(bpe, text, 257)
    # No merges: every byte is one token.
    assert len(ids) == len(text)
    assert np.flatnonzero(ids == 256).tolist() == [len(text) - 3, len(text) - 1]


def test_bpe_is_the_same_in_every_process() -> None:
    program = """
import hashlib, sysconfig
from pathlib import Path
from lrsweep.corpus.tokenize import train_bpe
root = Path(sysconfig.get_path("stdlib"))
text = b"\\0".join((root / name).read_bytes() for name in ("argparse.py", "typing.py", "json/decoder.py"))
print(hashlib.sha256(train_bpe(text, 2000).to_str().encode()).hexdigest())
"""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(hashes) == 1


def test_training_takes_the_training_side_only() -> None:
    documents = [row_document(f"row {i} of the text".encode() * 3) for i in range(60)]
    whole = split_documents(documents, max_bytes=1 << 20)
    other = SplitText(
        train=whole.train,
        heldout="ничего такого\0".encode() * 50,
        n_documents=60,
        n_dropped=0,
        truncated=False,
    )
    assert tokenize(whole, 320).tokenizer_json == tokenize(other, 320).tokenizer_json


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_token_dtype_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert np.dtype(token_dtype(vocab_size)) == dtype
    assert np.iinfo(token_dtype(vocab_size)).max >= vocab_size - 1


def test_entropy_of_known_distributions() -> None:
    uniform = np.repeat(np.arange(50, dtype=np.uint16), 3)
    assert unigram_entropy(uniform, 64) == pytest.approx(math.log(50), rel=1e-12)
    dyadic = np.array([0, 0, 0, 0, 1, 1, 2, 3], dtype=np.uint16)
    assert unigram_entropy(dyadic, 4) == pytest.approx(1.75 * math.log(2), rel=1e-12)
    assert math.copysign(1, unigram_entropy(np.zeros(9, np.uint16), 4)) == 1.0
    assert unigram_entropy(np.zeros(9, np.uint16), 4) == 0.0
    assert math.isnan(unigram_entropy(np.empty(0, np.uint16), 4))


@given(st.lists(st.integers(0, 299), min_size=1, max_size=200))
def test_entropy_is_the_mean_surprise(ids: list[int]) -> None:
    counts = Counter(ids)
    surprise = [-math.log(counts[i] / len(ids)) for i in ids]
    assert unigram_entropy(np.array(ids, np.uint32), 300) == pytest.approx(math.fsum(surprise) / len(ids), abs=1e-12)
