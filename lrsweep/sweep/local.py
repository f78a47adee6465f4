"""Runs trials in this process, one after the other: the same trials as Ray's, for a debugger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.store import ResultStore
from lrsweep.train import Engine, EngineKey, Progress, error_row, run_trial

OnProgress = Callable[[TrialSpec, Progress], None]


class TrialRunner:
    """Runs one trial after another, and builds a new step only when a trial needs a different one."""

    def __init__(self, corpora: dict[str, Corpus], store: ResultStore) -> None:
        self._corpora = corpora
        self._store = store
        self._engine: Engine | None = None

    def run(self, spec: TrialSpec) -> Iterator[Progress]:
        """Train ``spec``; a fault of the program ends it with the verdict ``error``, recorded like any other."""
        try:
            key = EngineKey.of(spec)
            if self._engine is None or self._engine.key != key:
                self._engine = None  # Frees the old one's memory before the new one takes its own.
                self._engine = Engine(key)
            yield from run_trial(spec, self._corpora[spec.size], self._store, self._engine)
        except Exception as error:
            self._engine = None
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield record_error(spec, self._store, reason)


def record_error(spec: TrialSpec, store: ResultStore, reason: str) -> Progress:
    """Write the record of a trial that could not be run to its end."""
    row = error_row(spec, reason)
    empty_layers: dict[str, list[object]] = {name: [] for name in ("step", "layer", "site", "stat", "value")}
    store.write_trial(row, {"step": []}, empty_layers)
    return Progress(step=0, steps=spec.train.steps, loss=float("nan"), verdict="error", row=row)


def run_local(
    specs: Sequence[TrialSpec], corpora: dict[str, Corpus], store: ResultStore, on_progress: OnProgress
) -> None:
    """Run ``specs`` in order."""
    runner = TrialRunner(corpora, store)
    for spec in specs:
        for progress in runner.run(spec):
            on_progress(spec, progress)
