"""OLMo-core ``Trainer``; hooks as in 3.0.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lrsweep.detect import DetectorConfig, Verdict
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor

try:
    from olmo_core.train.callbacks import Callback, CheckpointerCallback
    from olmo_core.train.common import OPTIM_GRAD_NORM_METRIC, TRAIN_CE_LOSS_METRIC
except ImportError as error:
    raise missing("olmo_core (ai2-olmo-core)", extra="olmo-core") from error


@dataclass
class StabilityCallback(Callback):
    """Judges the loss of every step: ``trainer.add_callback("lrsweep", StabilityCallback(action="stop"))``.

    Loss and gradient norm are those the trainer records (``train/CE loss``, ``optim/total grad norm``). The keys of
    :class:`~lrsweep.integrations.StabilityMonitor` are recorded at every step. The trainer itself raises on a
    non-finite loss whenever it collects its metrics.
    """

    priority: ClassVar[int] = 2  # before the checkpointer's 1

    action: Action = "log"
    """As in :class:`~lrsweep.integrations.StabilityMonitor`."""
    config: DetectorConfig | None = None
    """Thresholds of the detector."""

    def __post_init__(self) -> None:
        self.monitor = StabilityMonitor(action=self.action, config=self.config)
        self._held: list[CheckpointerCallback] = []

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; after ``fit``, the final one."""
        return self.monitor.verdict

    def post_train_batch(self) -> None:
        """Judges the step, and holds its checkpoint back if need be."""
        trainer = self.trainer
        loss, grad_norm = (trainer.get_metric(name) for name in (TRAIN_CE_LOSS_METRIC, OPTIM_GRAD_NORM_METRIC))
        self.monitor.update(self.step, loss, grad_norm)
        for name, value in self.monitor.metrics().items():
            trainer.record_metric(name, value)
        self._hold_back([checkpointer for checkpointer in self._checkpointers() if _is_due(checkpointer, self.step)])
        if self.monitor.should_stop and not trainer.is_canceled:
            trainer.cancel_run(str(self.verdict), no_sync=True)  # all ranks are here

    def post_step(self) -> None:
        """Lets go of what was held back, now that the checkpoint's time is over."""
        while self._held:
            self._held.pop().enabled = True

    def post_train(self) -> None:
        """Judges the last step and the run as a whole, before the last checkpoint."""
        self.monitor.finish()
        self._hold_back(self._checkpointers())

    def _checkpointers(self) -> list[CheckpointerCallback]:
        callbacks = self.trainer.callbacks.values()
        return [callback for callback in callbacks if isinstance(callback, CheckpointerCallback) and callback.enabled]

    def _hold_back(self, checkpointers: list[CheckpointerCallback]) -> None:
        if not checkpointers or self.monitor.may_save(self.trainer.train_module.model):
            return
        for checkpointer in checkpointers:
            checkpointer._await_last_checkpoint()  # one under way is finished, which a disabled one would not do
            checkpointer.enabled = False
            self._held.append(checkpointer)

    def state_dict(self) -> dict[str, Any]:
        """The monitor's."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.monitor.load_state_dict(state_dict)


def _is_due(checkpointer: CheckpointerCallback, step: int) -> bool:
    intervals = (checkpointer.save_interval, checkpointer.ephemeral_save_interval)
    return any(interval and step % interval == 0 for interval in intervals) or step in (checkpointer.fixed_steps or ())
