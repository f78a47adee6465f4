"""From ``--data`` to a :class:`Corpus`, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from lrsweep.corpus.cache import Corpus, default_cache_dir, open_corpus, write_corpus
from lrsweep.corpus.documents import SplitText, split_documents
from lrsweep.corpus.embedded import Scale, embedded_documents, embedded_source
from lrsweep.corpus.sources import list_files, read_files, read_hub
from lrsweep.corpus.token_files import MAX_VOCAB, read_token_files
from lrsweep.corpus.tokenize import TokenizedText, Tokenizer, tokenize
from lrsweep.errors import UserError

# Part of every cache key: raise it when the way from a text to its tokens changes.
_FORMAT = 1


def load_corpus(
    data: str | None,
    *,
    tokenizer: Tokenizer = "bytes",
    scale: Scale = "small",
    cache_dir: Path | None = None,
    text_column: str = "text",
    max_bytes: int = 1 << 30,
    min_train_tokens: int = 2,
    min_heldout_tokens: int = 2,
) -> Corpus:
    """Read, split, tokenise and cache a text; another call with the same text maps what the first one wrote.

    Args:
        data: None for the embedded Python source (:func:`.embedded_documents`); the path of a text file,
            JSONL, Parquet, ``.bin`` of token ids, or a folder of them; or ``hf:NAME[:CONFIG[:SPLIT]]``.
        tokenizer: ``"bytes"``, or the vocabulary size of a BPE trained on the training text. ``.bin`` files
            are taken as they are, whatever it says.
        scale: ``large`` adds the source of installed packages to the embedded text.
        cache_dir: None for :func:`default_cache_dir`. On several machines, a folder that all of them see.
        text_column: field or column of JSONL, Parquet and hub rows with the text; null skips the row.
        max_bytes: no more than this is read, in the order of files and rows; ``source`` says so.
        min_train_tokens: tokens that training needs.
        min_heldout_tokens: tokens that the evaluation needs.

    About 4% is held out: :func:`.split_documents` says which. Files are read at every call and recognised by
    their text. A hub name stands for its content: it is downloaded once, and read from the cache after that.

    Raises:
        UserError: the data cannot be read, are not what they seem or too few, or the cache cannot be written.
    """
    if tokenizer != "bytes" and not 257 <= tokenizer <= MAX_VOCAB:
        raise UserError(f"a BPE has 257 (256 bytes and a separator) to {MAX_VOCAB:,} entries, not {tokenizer}")
    source, key, produce = _plan(data, tokenizer, scale, text_column, max_bytes)
    folder = (cache_dir or default_cache_dir()).absolute() / "corpus" / key
    name = "the embedded text" if data is None else f"--data {data}"
    if not folder.is_dir():
        tokens = produce()
        _check_size(name, len(tokens.train), len(tokens.heldout), min_train_tokens, min_heldout_tokens)
        write_corpus(folder, tokens)
    corpus = open_corpus(folder, source)
    _check_size(name, len(corpus.train_tokens), len(corpus.heldout_tokens), min_train_tokens, min_heldout_tokens)
    return corpus


_Plan = tuple[str, str, Callable[[], TokenizedText]]
"""The source in one line, the key in the cache, and how to make the tokens where they are not there yet."""


def _plan(data: str | None, tokenizer: Tokenizer, scale: Scale, text_column: str, max_bytes: int) -> _Plan:
    if data is None:
        text = split_documents(embedded_documents(scale), max_bytes=max_bytes)
        return _plan_text(embedded_source(scale), text, tokenizer)
    if data.startswith("hf:"):
        rows = read_hub(data.removeprefix("hf:"), text_column=text_column)
        source = f"{data} ({text_column}, up to {max_bytes / 1e6:,.0f} MB)"
        # Its text cannot be part of the key: finding the key would download it again.
        key = _key(data, text_column, str(max_bytes), str(tokenizer))
        return source, key, lambda: tokenize(split_documents(rows, max_bytes=max_bytes), tokenizer)
    if not data:
        raise UserError("--data is empty; name a file, a folder or hf:NAME, or leave it out")
    root = Path(data).expanduser()
    files = list_files(root)
    token_files = [path for path in files if path.suffix == ".bin"]
    if token_files and len(token_files) < len(files):
        raise UserError(f"--data {root} holds token files and others; name one of them, as in {token_files[0]}")
    if token_files:
        return _plan_tokens(data, files, max_bytes)
    documents = read_files(root, files, text_column=text_column, max_bytes=max_bytes)
    text = split_documents(documents, max_bytes=max_bytes)
    if not text.n_documents:
        raise UserError(f"--data {root} holds no text; give UTF-8 text, .jsonl, .parquet or .bin")
    return _plan_text(data, text, tokenizer)


def _plan_text(source: str, text: SplitText, tokenizer: Tokenizer) -> _Plan:
    about = [
        f"{text.n_documents:,} document{'s' * (text.n_documents != 1)}",
        f"{'the first ' * text.truncated}{(len(text.train) + len(text.heldout)) / 1e6:,.1f} MB",
    ]
    if text.n_dropped:
        about.append(f"{text.n_dropped:,} empty, repeated or no text")
    key = _key(str(tokenizer), str(len(text.train)), text.train, text.heldout)
    return f"{source} ({', '.join(about)})", key, lambda: tokenize(text, tokenizer)


def _plan_tokens(source: str, files: list[Path], max_bytes: int) -> _Plan:
    tokens, truncated = read_token_files(files, max_bytes=max_bytes)
    n_tokens = len(tokens.train) + len(tokens.heldout)
    key = _key("ids", str(len(tokens.train)), tokens.train.tobytes(), tokens.heldout.tobytes())
    return f"{source} ({'the first ' * truncated}{n_tokens:,} token ids)", key, lambda: tokens


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for part in parts:
        digest.update(b"\n")
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:24]


def _check_size(name: str, n_train: int, n_heldout: int, min_train: int, min_heldout: int) -> None:
    if n_train < min_train:
        raise UserError(
            f"{name} has {n_train:,} training tokens, {min_train:,} are needed; "
            "give more text with --data, or lower --batch-size"
        )
    if n_heldout < min_heldout:
        raise UserError(
            f"{name} has {n_heldout:,} held-out tokens (about 4% of the text), {min_heldout:,} are needed; "
            "give more text with --data"
        )
