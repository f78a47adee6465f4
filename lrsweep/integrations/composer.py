"""MosaicML Composer ``Trainer``; hooks as in 0.32.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrsweep.detect import DetectorConfig, Verdict
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor
from lrsweep.integrations.wrapping import Wrapping

try:
    from composer import Callback, Event, Logger, State
    from composer.callbacks import CheckpointSaver
except ImportError as error:
    raise missing("composer (mosaicml)") from error


class StabilityCallback(Callback):
    """Judges the loss of every batch: ``Trainer(callbacks=[StabilityCallback(action="stop")])``.

    The loss is ``loss/train/total``, which Composer has already averaged over micro-batches and ranks and read, so
    nothing is added to a step. The keys of :class:`~lrsweep.integrations.StabilityMonitor` are logged at every batch.

    Args:
        action: As in :class:`~lrsweep.integrations.StabilityMonitor`.
        config: Thresholds of the detector.
    """

    def __init__(self, *, action: Action = "log", config: DetectorConfig | None = None) -> None:
        self.monitor = StabilityMonitor(action=action, config=config, across_ranks=False)
        self._wrapping = Wrapping()

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; after ``fit``, the final one."""
        return self.monitor.verdict

    def fit_start(self, state: State, logger: Logger) -> None:
        """Takes its place before every ``CheckpointSaver``."""
        self._wrapping.undo()  # a fit that raised has left it in place
        for saver in state.callbacks:
            if isinstance(saver, CheckpointSaver):
                self._wrapping.around(saver, "save_interval", self._save_interval)

    def _save_interval(self, save_interval: Callable[[State, Event], bool], state: State, event: Event) -> bool:
        return save_interval(state, event) and self.monitor.may_save(state.model)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Judges the batch."""
        self.monitor.update(state.timestamp.batch.value, state.total_loss_dict.get("loss/train/total"))
        logger.log_metrics(self.monitor.metrics())
        if self.monitor.should_stop:
            state.stop_training()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Judges the run as a whole."""
        self._wrapping.undo()
        self.monitor.finish()

    def state_dict(self) -> dict[str, Any]:
        """The monitor's."""
        return self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.monitor.load_state_dict(state)
