"""What a user reads whose ``--data`` cannot be used: one line with the remedy, and nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrsweep.corpus import load_corpus
from lrsweep.errors import UserError


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "txt": ["a", "b"]}), path)


def numbers(path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), path)


def short_parquet(path: Path) -> None:
    parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


def header(magic: int, stated: int, found: int) -> bytes:
    head = np.zeros(256, "<i4")
    head[:3] = magic, 1, stated
    return head.tobytes() + np.zeros(found, "<u2").tobytes()


def folder(**files: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)

    return make


def nothing(path: Path) -> None:
    pass


ids32 = (np.arange(5000) % 50_257).astype("<u4").tobytes()
CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("no.txt", nothing, "{path} does not exist or is no file; name a file, a folder or hf:NAME"),
    "device": ("null", lambda p: p.symlink_to("/dev/null"), "{path} does not exist or is no file; name"),
    "below a file": (
        "a.txt/b.txt",
        lambda p: p.parent.write_text("x"),
        "{path} does not exist",
    ),
    "empty text": ("a.txt", written(b""), "{path} holds no text; give UTF-8 text"),
    "empty jsonl": ("a.jsonl", written(b"\n\n"), "{path} holds no text; give UTF-8 text"),
    "binary": (
        "a.gz",
        written(b"\x1f\x8b\x08\x00\xff\xfe"),
        "{path} is neither UTF-8 text nor .jsonl, .parquet",
    ),
    "zeros": (
        "a.dat",
        written(bytes(4096)),
        "{path} is neither UTF-8 text nor .jsonl, .parquet or .bin; convert",
    ),
    "utf-16": ("a.txt", written("text".encode("utf-16")), "{path} is neither UTF-8 text nor"),
    "empty folder": ("d", folder(), "{path} is a folder without files; name one that holds text"),
    "folder of no text": ("d", folder(a__png=b"\x89\0", b__txt=b""), "{path} holds no text; give UTF-8 text"),
    "mixed folder": (
        "d",
        folder(readme__md=b"text", train__bin=bytes(64), val__bin=bytes(64)),
        "{path} holds token files and others; name one of them, as in {path}/train.bin",
    ),
    "bad line": (
        "a.jsonl",
        written(b'{"text": "a"}\n{"text": \n'),
        "{path} line 2 is not JSON (Expecting value",
    ),
    "bad bytes": ("a.jsonl", written(b'{"text": "\xff"}\n'), "{path} line 1 is not JSON ('utf-8' codec"),
    "not an object": ("a.jsonl", written(b'\n["text"]\n'), "{path} line 2 is not a JSON object"),
    "no field": (
        "a.jsonl",
        written(b'{"text": "a"}\n{"url": "b", "id": 1, "texts": ""}\n'),
        '{path} line 2 has no "text"; name one with --text-column: texts, ',
    ),
    "no fields": (
        "a.jsonl",
        written(b"{}"),
        '{path} line 1 has no "text"; name one with --text-column: it has none',
    ),
    "field of numbers": (
        "a.jsonl",
        written(b'{"text": 1}'),
        '{path} line 1: "text" holds int, not text; name another with --text-column',
    ),
    "no column": ("a.parquet", parquet, '{path} has no "text"; name one with --text-column: txt, id'),
    "column of numbers": ("a.parquet", numbers, '{path}: "text" holds int, not text; name another'),
    "parquet cut short": ("a.parquet", short_parquet, "{path} is cut short or not Parquet ("),
    "not parquet": ("a.parquet", written(b"PAR1 or so"), "{path} is cut short or not Parquet ("),
    "no ids": ("a.bin", written(b""), "{path} is empty; give a file with token ids"),
    "no ids after the header": ("a.bin", written(header(20240520, 0, 0)), "{path} is empty; give a file"),
    "odd length": (
        "a.bin",
        written(bytes(101)),
        "{path} is 101 bytes long, not a whole number of uint16 ids; it is cut short or no token file",
    ),
    "half an id": (
        "a.u32.bin",
        written(bytes(6)),
        "{path} is 6 bytes long, not a whole number of uint32 ids",
    ),
    "tokens cut short": (
        "a.bin",
        written(header(20240520, 1000, 900)),
        "{path} is damaged: its header says 1,000 tokens, it holds 900",
    ),
    "uint32 unsaid": ("a.bin", written(ids32), "{path} looks like uint32 ids; rename it to a.uint32.bin"),
    "beyond a vocabulary": (
        "a.uint32.bin",
        written(np.full(500, 2.5, "<f4").tobytes()),
        "{path} holds ids up to 1,075,838,976, beyond any vocabulary; it is not a file of uint32 token ids",
    ),
    "too little to train": (
        "a.txt",
        written(b"a" * 1000),
        "{path} has 965 training tokens, 2,000 are needed; give more text with --data, or lower --batch-size",
    ),
    "too little to hold out": (
        "a.txt",
        written(b"a" * 3000),
        "{path} has 124 held-out tokens (about 4% of the text), 500 are needed; give more text",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(case: str, tmp_path: Path) -> None:
    name, make, message = CASES[case]
    path = tmp_path / name
    make(path)
    with pytest.raises(UserError) as caught:
        load_corpus(str(path), cache_dir=tmp_path / "cache", min_train_tokens=2000, min_heldout_tokens=500)
    line = str(caught.value)
    assert line.startswith("--data " + message.format(path=path)), line
    assert "\n" not in line
    assert not (tmp_path / "cache").exists()


def test_size_is_checked_in_the_cache_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 3000)
    load_corpus(str(tmp_path / "a.txt"), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="2,885 training tokens, 5,000 are needed"):
        load_corpus(str(tmp_path / "a.txt"), cache_dir=tmp_path / "cache", min_train_tokens=5000)
    with pytest.raises(UserError, match=r"^the embedded text has .* 1,000,000,000 are needed"):
        load_corpus(None, cache_dir=tmp_path / "cache", min_train_tokens=10**9)


def test_empty_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--data is empty; name a file"):
        load_corpus("", cache_dir=tmp_path)


@pytest.mark.parametrize("size", [0, 256, 2**20 + 1])
def test_vocabulary_size_out_of_range(size: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a BPE has 257 .* to 1,048,576 entries, not {size}"):
        load_corpus(None, tokenizer=size, cache_dir=tmp_path)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 3000)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write the corpus cache .*set LRSWEEP_CACHE to a folder"):
        load_corpus(str(tmp_path / "a.txt"), cache_dir=tmp_path / "file")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.bin", "."])
def test_permissions(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    path = root / name
    if name != ".":
        path.write_bytes(bytes(64))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    try:
        with pytest.raises(UserError, match=rf"^--data {re.escape(str(path))} cannot be read: Permission denied"):
            load_corpus(str(path), cache_dir=tmp_path / "cache")
    finally:
        path.chmod(0o700)


def test_cache_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 3000)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match=r"^cannot write the corpus cache .*Permission denied.*LRSWEEP_CACHE"):
        load_corpus(str(tmp_path / "a.txt"), cache_dir=cache)
    assert not list(cache.iterdir())
