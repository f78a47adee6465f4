"""The ends of a sweep on Ray Tune: the worker that trains, the callback that hears of it, and what a search asks for.

Imported only once the environment of :mod:`.ray_executor` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.store import ResultStore
from lrsweep.sweep.local import TrialRunner
from lrsweep.sweep.ray_ranks import Lead
from lrsweep.sweep.search import FrontierSearch
from lrsweep.train import Progress


class Actor(tune.Trainable):
    """A worker that runs one trial after another, so that a compiled step is used again; a step is an interval."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, str],
        specs: dict[str, TrialSpec],
        corpora: dict[str, Corpus],
        root: Path,
        together: int,
        gpu_share: float | None,
    ) -> None:
        if gpu_share is not None and gpu_share < 1:
            # Ray's fraction of a GPU limits no memory by itself.
            torch.cuda.set_per_process_memory_fraction(gpu_share)
        self._specs, store = specs, ResultStore(root)
        self._runner = TrialRunner(corpora, store) if together == 1 else Lead(together, specs, corpora, store)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, str]) -> bool:
        self._reports = self._runner.run(self._specs[new_config["trial"]])
        return True

    def step(self) -> dict[str, Any]:
        progress = next(self._reports)
        return {"progress": progress, "done": progress.row is not None}

    def cleanup(self) -> None:
        if isinstance(self._runner, Lead):
            self._runner.dismiss()


class Reporter(tune.Callback):
    """Passes on, in the driver, what the workers report."""

    def __init__(
        self, on_progress: Callable[[str, Progress], None] | None = None, on_lost: Callable[[str], None] | None = None
    ) -> None:
        self._on_progress = on_progress
        self._on_lost = on_lost

    def __reduce__(self) -> tuple[type[Reporter], tuple[()]]:
        # Tune pickles its callbacks for a restore that lrsweep does from its own files instead.
        return Reporter, ()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        assert self._on_progress is not None
        self._on_progress(trial.config["trial"], result["progress"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        assert self._on_lost is not None
        self._on_lost(trial.config["trial"])


class Searcher(tune.search.Searcher):
    """Asks a search for a trial whenever a worker is free, and not before: the next one depends on how all others end.

    What has ended the search hears from the callback that gets the reports.

    Args:
        search: what is asked.
        at_once: trials that find room at the same time.
    """

    def __init__(self, search: FrontierSearch, at_once: int) -> None:
        super().__init__()
        self._search, self._at_once = search, at_once

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:  # type: ignore[override]
        if self._search.n_pending >= self._at_once:
            return None
        if (spec := self._search.next()) is not None:
            return {"trial": spec.trial}
        return None if self._search.n_pending else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""
