"""The text that needs no download."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lrsweep.corpus import load_corpus
from lrsweep.corpus.documents import HELDOUT_SHARE
from lrsweep.corpus.embedded import LARGE_PACKAGES, embedded_documents, embedded_source


def rank(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


def test_standard_library_without_its_tests_and_tables() -> None:
    by_rank = {d.rank: d.text for d in embedded_documents("small")}
    assert by_rank[rank("json/decoder.py")] == Path(json.decoder.__file__).read_bytes()
    for left_out in ("test/test_json/test_decode.py", "unittest/test/test_case.py", "encodings/cp1252.py"):
        assert rank(left_out) not in by_rank
    assert rank("site-packages/numpy/__init__.py") not in by_rank
    assert len(b"".join(by_rank.values())) > 5_000_000


def test_large_adds_packages() -> None:
    small = {d.rank for d in embedded_documents("small")}
    large = {d.rank for d in embedded_documents("large")}
    assert small < large
    assert {rank(p) for p in ("torch/nn/functional.py", "ray/tune/tuner.py", "pandas/core/frame.py")} <= large - small
    assert rank("torch/version.py") not in large
    assert all(f"{package} " in embedded_source("large") for package in LARGE_PACKAGES)


def test_training_and_heldout_text_share_no_file(tmp_path: Path) -> None:
    corpus = load_corpus(None, cache_dir=tmp_path)
    train, heldout = (
        set(side.astype("uint8").tobytes().split(b"\0")[:-1]) for side in (corpus.train_tokens, corpus.heldout_tokens)
    )
    texts = {d.text for d in embedded_documents("small")} - {b""}
    assert not train & heldout
    assert train | heldout == texts
    share = len(corpus.heldout_tokens) / (len(corpus.train_tokens) + len(corpus.heldout_tokens))
    assert 0.03 <= share <= 0.06
    by_hash = {d.text for d in embedded_documents("small") if int(d.rank.hex(), 16) / 2**256 < HELDOUT_SHARE}
    assert by_hash - {b""} <= heldout


def test_second_load_maps_what_the_first_wrote(tmp_path: Path) -> None:
    first = load_corpus(None, cache_dir=tmp_path)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    second = load_corpus(None, cache_dir=tmp_path)
    assert second.data_hash == first.data_hash
    assert second.train_tokens.filename == first.train_tokens.filename
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == written
