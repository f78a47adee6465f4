"""Lightning ``Trainer`` (lightning or pytorch-lightning, 2.2 and later)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrsweep.detect import DetectorConfig, Verdict
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor
from lrsweep.integrations.wrapping import Wrapping

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise missing("lightning", extra="lightning") from error

_SAVES = ("_save_topk_checkpoint", "_save_last_checkpoint", "on_exception")
"""The methods of ``ModelCheckpoint`` through which every file goes, before an earlier one is removed for it."""


class StabilityCallback(Callback):
    """Judges the loss of every optimizer step: ``Trainer(callbacks=[StabilityCallback(action="stop")])``.

    The loss is what ``training_step`` returns, mean over the accumulated batches; in manual optimization it must
    return one too. The keys of :class:`~lrsweep.integrations.StabilityMonitor` are logged at every step. Each ``fit``
    begins anew, or goes on with the state in ``ckpt_path``.

    Args:
        action: As in :class:`~lrsweep.integrations.StabilityMonitor`.
        config: Thresholds of the detector.
    """

    def __init__(self, *, action: Action = "log", config: DetectorConfig | None = None) -> None:
        self.monitor = StabilityMonitor(action=action, config=config)
        self._wrapping = Wrapping()
        self._losses: list[Any] = []
        self._step = 0

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; after ``fit``, the final one."""
        return self.monitor.verdict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew, before a checkpoint's state is loaded, and takes its place before each ``ModelCheckpoint``."""
        if stage != "fit":
            return
        self.monitor = StabilityMonitor(action=self.monitor.action, config=self.monitor.detector.config)
        self._wrapping.undo()  # a fit that raised has left it in place
        for checkpoint in trainer.checkpoint_callbacks:
            for name in _SAVES:
                if hasattr(checkpoint, name):
                    self._wrapping.around(checkpoint, name, self._save)

    def _save(self, save: Callable[..., None], trainer: Trainer, *args: Any) -> None:
        if self.monitor.may_save(trainer.model):
            save(trainer, *args)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the step that training starts from."""
        self._losses, self._step = [], trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the loss of a batch and, if the optimizer stepped, judges the step."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            # Lightning hands out the share of the batch in the accumulated loss.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.monitor.update(self._step, self._losses)
        self._losses = []
        pl_module.log_dict(self.monitor.metrics(), batch_size=1)
        if self.monitor.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the last step and the run as a whole."""
        self.monitor.finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the checkpoint callbacks as they were."""
        self._wrapping.undo()

    def state_dict(self) -> dict[str, Any]:
        """The monitor's."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.monitor.load_state_dict(state_dict)
