"""Every format read, cached and hashed."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrsweep.corpus import Corpus, default_cache_dir, load_corpus, open_corpus, unigram_entropy
from lrsweep.errors import UserError

ROWS = [f"Row {i}: naïve café №{i}\nand a second line. " * 3 for i in range(60)]


def load(data: Path | str, tmp_path: Path, **options: object) -> Corpus:
    return load_corpus(str(data), cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]


def documents(corpus: Corpus) -> set[str]:
    both = np.concatenate([corpus.train_tokens, corpus.heldout_tokens]).astype(np.uint8).tobytes()
    return {d.decode() for d in both.split(b"\0")[:-1]}


def write_jsonl(path: Path, rows: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, column: row}) + "\n" for i, row in enumerate(rows)))
    return path


def write_parquet(path: Path, rows: list[str], column: str = "text") -> Path:
    pq.write_table(pa.table({"id": range(len(rows)), column: rows}), path)
    return path


# ---- formats ----


def test_jsonl_and_parquet_give_the_same_tokens(tmp_path: Path) -> None:
    paths = [
        write_jsonl(tmp_path / "rows.jsonl", ROWS),
        write_jsonl(tmp_path / "rows.ndjson", ROWS[::-1]),
        write_parquet(tmp_path / "rows.parquet", ROWS),
    ]
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "folder" / "a.jsonl", ROWS[:25])
    write_parquet(tmp_path / "folder" / "deep" / "b.parquet", ROWS[25:])
    corpora = [load(path, tmp_path) for path in [*paths, tmp_path / "folder"]]
    assert documents(corpora[0]) == set(ROWS)
    assert len({c.data_hash for c in corpora}) == 1
    assert [c.source.split(" (")[0] for c in corpora] == [*map(str, paths), str(tmp_path / "folder")]


def test_column_is_chosen(tmp_path: Path) -> None:
    plain = load(write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path)
    for path in (
        write_jsonl(tmp_path / "b.jsonl", ROWS, "body"),
        write_parquet(tmp_path / "c.parquet", ROWS, "body"),
    ):
        assert load(path, tmp_path, text_column="body").data_hash == plain.data_hash


def test_null_rows_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": row}) for row in ROWS]
    path.write_text("\ufeff" + "\n\n".join([*lines[:9], '{"text": null}', *lines[9:]]), encoding="utf-8")
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [None, *ROWS]}), parquet)
    assert documents(load(path, tmp_path)) == documents(load(parquet, tmp_path)) == set(ROWS)


def test_text_file_is_the_same_text_in_slices(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\ufeff" + "".join(ROWS), encoding="utf-8")
    corpus = load(path, tmp_path)
    train, heldout = (
        side.astype(np.uint8).tobytes().split(b"\0")[:-1] for side in (corpus.train_tokens, corpus.heldout_tokens)
    )
    pieces = [piece for pair in zip(train, [*heldout, b""], strict=True) for piece in pair]
    assert b"".join(pieces).decode() == "".join(ROWS)
    assert corpus.bytes_per_token == 1.0
    assert corpus.unigram_entropy == unigram_entropy(corpus.train_tokens, 256)


def test_folder_of_text_files(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    (root / "sub" / ".git").mkdir(parents=True)
    for i, row in enumerate(ROWS):
        (root / ("sub" if i % 2 else "") / f"{i}.md").write_text(row, encoding="utf-8")
    (root / "copy.md").write_text(ROWS[0], encoding="utf-8")
    (root / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (root / ".hidden").write_text("hidden")
    (root / "sub" / ".git" / "config").write_text("hidden")
    corpus = load(root, tmp_path)
    assert documents(corpus) == set(ROWS)
    assert corpus.source.endswith("(60 documents, 0.0 MB, 2 empty, repeated or no text)")


def write_tokens(path: Path, tokens: np.ndarray, *, magic: int | None = None) -> Path:
    header = np.zeros(256, "<i4")
    if magic is not None:
        header[:3] = magic, 1, len(tokens)
    path.write_bytes((header.tobytes() if magic is not None else b"") + tokens.tobytes())
    return path


def test_token_files(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 9_999)
    ids[-1] = 50_256
    corpora = [
        load(write_tokens(tmp_path / "raw.bin", ids.astype("<u2")), tmp_path),
        load(write_tokens(tmp_path / "gpt2.bin", ids.astype("<u2"), magic=20240520), tmp_path),
        load(write_tokens(tmp_path / "llama.bin", ids.astype("<u4"), magic=20240801), tmp_path),
        load(write_tokens(tmp_path / "raw.uint32.bin", ids.astype("<u4")), tmp_path),
    ]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tokens(shards / "part_0.bin", ids[:4000].astype("<u2"), magic=20240520)
    write_tokens(shards / "part_1.bin", ids[4000:].astype("<u2"), magic=20240520)
    corpora.append(load(shards, tmp_path))
    assert len({c.data_hash for c in corpora}) == 1
    corpus = corpora[0]
    assert corpus.vocab_size == 50_304
    assert corpus.tokenizer == "ids"
    assert math.isnan(corpus.bytes_per_token)
    cuts = [int(9_999 * p / 100) for p in (12, 13, 37, 38, 62, 63, 87, 88)]
    pieces = np.split(ids, cuts)
    assert np.array_equal(corpus.train_tokens, np.concatenate(pieces[::2]))
    assert np.array_equal(corpus.heldout_tokens, np.concatenate(pieces[1::2]))


def test_large_vocabulary_is_uint32(tmp_path: Path) -> None:
    ids = np.arange(0, 128_256, 7, dtype="<u4")
    corpus = load(write_tokens(tmp_path / "llama3.bin", ids, magic=20240801), tmp_path)
    assert corpus.train_tokens.dtype == corpus.heldout_tokens.dtype == np.uint32
    assert corpus.vocab_size == 128_256
    assert corpus.train_tokens.max() < corpus.vocab_size


def test_bpe_corpus(tmp_path: Path) -> None:
    corpus = load(write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path, tokenizer=400)
    assert (corpus.vocab_size, corpus.tokenizer) == (400, "bpe-400")
    n_separators = np.count_nonzero(corpus.train_tokens == 399) + np.count_nonzero(corpus.heldout_tokens == 399)
    assert n_separators == len(ROWS)
    assert corpus.bytes_per_token > 1.5
    assert (corpus.folder / "tokenizer.json").exists()


def test_no_more_than_max_bytes(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("ab" * 5000)
    corpus = load(tmp_path / "book.txt", tmp_path, max_bytes=1000)
    assert len(corpus.train_tokens) + len(corpus.heldout_tokens) == 1000 + 9  # one separator after each slice
    assert "the first 0.0 MB" in corpus.source
    ids = write_tokens(tmp_path / "ids.bin", np.arange(1000, dtype="<u2"))
    corpus = load(ids, tmp_path, max_bytes=1000)
    assert len(corpus.train_tokens) + len(corpus.heldout_tokens) == 500
    assert corpus.source == f"{ids} (the first 500 token ids)"


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"text": "a\ud800b' + "c" * 200 + '"}')
    assert b"a?b" in load(path, tmp_path).train_tokens.astype(np.uint8).tobytes()


# ---- the hub ----


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="the datasets library (extra hf) is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "hub"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ROWS, "url": ["-"] * len(ROWS)}).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_dict({"text": ROWS[:30], "url": ["-"] * 30}).to_parquet(folder / "validation.parquet")
    return folder


def test_hub_rows_are_the_same_text(hub_folder: Path, tmp_path: Path) -> None:
    files = load(write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path)
    corpus = load(f"hf:{hub_folder}", tmp_path)
    assert corpus.data_hash == files.data_hash
    assert documents(load(f"hf:{hub_folder}:default:validation", tmp_path)) == set(ROWS[:30])
    assert documents(load(f"hf:{hub_folder}::validation", tmp_path)) == set(ROWS[:30])
    # A name stands for its content: the second time nothing is downloaded.
    (hub_folder / "train.parquet").unlink()
    assert load(f"hf:{hub_folder}", tmp_path).data_hash == files.data_hash


@pytest.mark.parametrize(
    ("spec", "column", "message"),
    [
        ("", "txt", r'row 1 has no "txt"; name one with --text-column: text, url'),
        ("::nonesuch", "text", r"could not be loaded: .*nonesuch"),
        ("/nowhere", "text", r"could not be loaded: "),
        (":a:b:c", "text", r"is not of the form hf:NAME"),
    ],
)
def test_hub_errors(hub_folder: Path, tmp_path: Path, spec: str, column: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^--data hf:.*{message}") as caught:
        load(f"hf:{hub_folder}{spec}", tmp_path, text_column=column)
    assert "\n" not in str(caught.value)


def test_hub_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'^--data hf:some/name needs .* pip install "lrsweep\[hf\]"$'):
        load("hf:some/name", tmp_path)


# ---- hash and cache ----


def write_folder(root: Path, rows: list[str]) -> Path:
    root.mkdir(parents=True)
    for i, row in enumerate(rows):
        (root / f"{i}.txt").write_text(row, encoding="utf-8")
    return root


def test_hash_is_of_the_text_alone(tmp_path: Path) -> None:
    here = write_folder(tmp_path / "here", ROWS)
    there = write_folder(tmp_path / "some" / "where" / "else", ROWS)
    for path in there.iterdir():
        os.utime(path, (1, 1))
    first, second = load(here, tmp_path), load_corpus(str(there), cache_dir=tmp_path / "other cache")
    assert first.data_hash == second.data_hash
    assert second.source.startswith(str(there))


@pytest.mark.parametrize("tokenizer", ["bytes", 300])
def test_hash_changes_with_one_byte(tmp_path: Path, tokenizer: object) -> None:
    hashes = set()
    for index in (0, 17, 59):
        rows = list(ROWS)
        rows[index] = rows[index].replace("second", "sekond", 1)
        hashes.add(load(write_folder(tmp_path / str(index), rows), tmp_path, tokenizer=tokenizer).data_hash)
    hashes.add(load(write_folder(tmp_path / "plain", ROWS), tmp_path, tokenizer=tokenizer).data_hash)
    assert len(hashes) == 4


def test_hash_changes_with_the_tokenizer(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert len({load(path, tmp_path, tokenizer=t).data_hash for t in ("bytes", 300, 301)}) == 3


def test_corpus_is_mapped_read_only_and_pickled_by_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("word " * 40_000)
    corpus = load(path, tmp_path)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    path.unlink()
    copy = pickle.loads(pickled)
    assert isinstance(copy.train_tokens, np.memmap)
    assert not copy.train_tokens.flags.writeable
    assert np.array_equal(copy.train_tokens, corpus.train_tokens)
    assert (copy.data_hash, copy.source, copy.folder) == (corpus.data_hash, corpus.source, corpus.folder)


def test_processes_at_the_same_time_leave_one_corpus(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    program = f"""
from pathlib import Path
from lrsweep.corpus import load_corpus
print(load_corpus({str(path)!r}, tokenizer=500, cache_dir=Path({str(tmp_path / "cache")!r})).data_hash)
"""
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    hashes = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(hashes) == 1
    assert len(list((tmp_path / "cache" / "corpus").iterdir())) == 1


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LRSWEEP_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("LRSWEEP_CACHE")
    monkeypatch.setenv("HOME", "/home/of/a/user")
    assert default_cache_dir() == Path("/home/of/a/user/.cache/lrsweep")


def test_damaged_cache_names_the_folder(tmp_path: Path) -> None:
    corpus = load(write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path)
    whole = (corpus.folder / "train.npy").read_bytes()
    (corpus.folder / "train.npy").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=rf"cached corpus {corpus.folder} cannot be read .* delete that folder"):
        load(tmp_path / "rows.jsonl", tmp_path)
    with pytest.raises(UserError, match="LRSWEEP_CACHE"):
        open_corpus(tmp_path / "nowhere", "text")


def test_import_is_light() -> None:
    program = "import sys, lrsweep.corpus; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert {"torch", "ray", "pandas", "tokenizers", "pyarrow", "datasets"}.isdisjoint(shown.split())
