"""Runs trials in this process, one after the other: the same trials as Ray's, for a debugger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.store import ResultStore
from lrsweep.train import Engine, EngineKey, Progress, Ranks, error_row, run_trial

OnProgress = Callable[[TrialSpec, Progress], None]


class TrialRunner:
    """Runs one trial after another, and builds a new step only when a trial needs a different one.

    Args:
        corpora: tokens of each size.
        store: where to record; None: nowhere.
        ranks: the processes that run the same trials in the same order, together; None: this one alone.
    """

    def __init__(self, corpora: dict[str, Corpus], store: ResultStore | None, ranks: Ranks | None = None) -> None:
        self._corpora = corpora
        self._store = store
        self._ranks = ranks
        self._engine: Engine | None = None

    def train(self, spec: TrialSpec) -> Iterator[Progress]:
        """Train ``spec``; a fault of the program passes through."""
        try:
            key = EngineKey.of(spec)
            if self._engine is None or self._engine.key != key:
                self._engine = None  # Frees the old one's memory before the new one takes its own.
                if self._ranks is not None:
                    self._ranks.unwatch()
                self._engine = Engine(key, ranks=self._ranks)
            yield from run_trial(spec, self._corpora[spec.size], self._store, self._engine, self._ranks)
        except Exception:
            self._engine = None
            raise

    def run(self, spec: TrialSpec) -> Iterator[Progress]:
        """Train ``spec``; a fault of the program ends it with the verdict ``error``, recorded like any other."""
        assert self._store is not None
        try:
            yield from self.train(spec)
        except Exception as error:
            yield record_error(spec, self._store, in_a_line(error))


def in_a_line(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def record_error(spec: TrialSpec, store: ResultStore, reason: str) -> Progress:
    """Write the record of a trial that could not be run to its end."""
    row = error_row(spec, reason)
    empty_layers: dict[str, list[object]] = {name: [] for name in ("step", "layer", "site", "stat", "value")}
    store.write_trial(row, {"step": []}, empty_layers)
    return Progress(step=0, steps=spec.train.steps, loss=float("nan"), verdict="error", row=row)


def run_local(
    specs: Iterable[TrialSpec], corpora: dict[str, Corpus], store: ResultStore, on_progress: OnProgress
) -> None:
    """Run ``specs`` in order, each asked for when the one before has ended."""
    runner = TrialRunner(corpora, store)
    for spec in specs:
        for progress in runner.run(spec):
            on_progress(spec, progress)
