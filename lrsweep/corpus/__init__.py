"""Text → tokens → batches, the same for every trial of a sweep. Nothing here imports torch."""

from lrsweep.corpus.batches import batch_offsets, heldout_windows
from lrsweep.corpus.cache import Corpus, default_cache_dir, open_corpus
from lrsweep.corpus.load import load_corpus
from lrsweep.corpus.tokenize import unigram_entropy

__all__ = [
    "Corpus",
    "batch_offsets",
    "default_cache_dir",
    "heldout_windows",
    "load_corpus",
    "open_corpus",
    "unigram_entropy",
]
