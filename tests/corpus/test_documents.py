"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsweep.corpus.documents import SplitText, file_document, row_document, split_documents

PLENTY = 1 << 30
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


def sides(split: SplitText) -> tuple[list[bytes], list[bytes]]:
    """Documents of the training and of the held-out side."""
    assert all(side.endswith(b"\0") or not side for side in (split.train, split.heldout))
    return split.train.split(b"\0")[:-1], split.heldout.split(b"\0")[:-1]


def fraction(key: str) -> float:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) / 2**256


@given(st.sets(texts, min_size=20, max_size=60))
def test_every_row_is_on_one_side(rows: set[str]) -> None:
    train, heldout = sides(split_documents([row_document(r.encode()) for r in rows], max_bytes=PLENTY))
    assert Counter(train + heldout) == Counter(r.encode() for r in rows)
    assert {r.encode() for r in rows if fraction(r) < 0.04} <= set(heldout)
    assert len(b"".join(heldout)) >= 0.03 * len("".join(rows).encode())


@given(st.permutations(sorted({f"row {i}" for i in range(40)})))
def test_order_and_repetition_of_rows_do_not_matter(rows: list[str]) -> None:
    documents = [row_document(r.encode()) for r in rows]
    shuffled = split_documents(documents + documents[:7], max_bytes=PLENTY)
    plain = split_documents(sorted(documents, key=lambda d: d.text), max_bytes=PLENTY)
    assert (shuffled.train, shuffled.heldout) == (plain.train, plain.heldout)
    assert (shuffled.n_dropped, plain.n_dropped) == (7, 0)


def test_files_are_held_out_by_the_hash_of_their_path() -> None:
    paths = [f"package/module_{i}.py" for i in range(2000)]
    split = split_documents((file_document(p, p.encode() * 9) for p in paths), max_bytes=PLENTY)
    train, heldout = sides(split)
    expected = sorted((p for p in paths if fraction(p) < 0.04), key=fraction)
    assert heldout == [p.encode() * 9 for p in expected]
    assert train == [p.encode() * 9 for p in sorted(set(paths) - set(expected), key=fraction)]
    # 2,000 draws at 0.04: 80 expected, standard deviation 8.8.
    assert 45 <= len(heldout) <= 115


def test_a_file_keeps_its_side_while_others_come_and_go() -> None:
    paths = [f"{i}.txt" for i in range(1000)]
    whole = set(sides(split_documents((file_document(p, p.encode()) for p in paths), max_bytes=PLENTY))[1])
    half = set(sides(split_documents((file_document(p, p.encode()) for p in paths[::2]), max_bytes=PLENTY))[1])
    assert half == whole & {p.encode() for p in paths[::2]}


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=400, max_size=900))
def test_one_text_is_cut_into_slices(text: str) -> None:
    train, heldout = sides(split_documents([row_document(text.encode())], max_bytes=PLENTY))
    assert (len(train), len(heldout)) == (5, 4)
    # Laid end to end in turn they are the text again, and each is whole characters.
    pieces = [piece for pair in zip(train, [*heldout, b""], strict=True) for piece in pair]
    assert "".join(piece.decode() for piece in pieces) == text
    n = len(text.encode()) + 1  # with the separator at its end
    start = 0
    for index, piece in enumerate(pieces[:-1]):
        percent = (0, 12, 13, 37, 38, 62, 63, 87, 88)[index]
        assert n * percent / 100 - 4 < start <= n * percent / 100
        start += len(piece)


def test_few_documents_are_joined_and_cut() -> None:
    rows = [bytes([65 + i]) * 500 for i in range(19)]
    train, heldout = sides(split_documents([row_document(r) for r in rows], max_bytes=PLENTY))
    assert sum(map(len, heldout)) == pytest.approx(0.04 * 19 * 501, abs=8)
    assert Counter(b"".join(train + heldout)) == Counter(b"".join(rows))
    # The order of the rows is kept.
    assert sorted(b"".join(train)) == list(b"".join(train))


def test_no_more_than_max_bytes_and_no_broken_character() -> None:
    documents = [row_document("ä".encode() * 100), row_document("ö".encode() * 100)]
    split = split_documents(documents, max_bytes=301)
    kept = (split.train + split.heldout).replace(b"\0", b"").decode()
    assert Counter(kept) == {"ä": 100, "ö": 50}
    assert split.truncated
    assert not split_documents(documents, max_bytes=400).truncated


def test_empty_documents_are_dropped() -> None:
    split = split_documents([row_document(b""), row_document(b"x" * 100), row_document(b"")], max_bytes=PLENTY)
    assert (split.n_documents, split.n_dropped) == (1, 2)
