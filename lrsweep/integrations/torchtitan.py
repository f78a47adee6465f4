"""torchtitan ``Trainer``, which has no callbacks; methods as in 0.3.0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrsweep.detect import DetectorConfig
from lrsweep.integrations.monitor import Action, StabilityMonitor
from lrsweep.integrations.wrapping import Wrapping

if TYPE_CHECKING:
    from torchtitan.trainer import Trainer


def watch(trainer: Trainer, *, action: Action = "log", config: DetectorConfig | None = None) -> StabilityMonitor:
    """Watches ``trainer`` from here on; call it between building the trainer and ``trainer.train()``.

    Reads what ``forward_backward_step`` returns at every step, logged or not, and the gradient norm where the step is
    logged. The keys of :class:`~lrsweep.integrations.StabilityMonitor` join the trainer's metrics. The trainer itself
    raises on a non-finite loss at a step that it logs. The monitor's state is not part of the checkpoints: after a
    resume it begins anew.
    """
    monitor = StabilityMonitor(action=action, config=config)
    _Watch(trainer, monitor)
    return monitor


class _Watch:
    def __init__(self, trainer: Trainer, monitor: StabilityMonitor) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._losses: list[torch.Tensor] = []
        self._grad_norm: float | None = None
        self._wrapping = Wrapping()
        for owner, name, wrapper in (
            (trainer, "forward_backward_step", self._forward_backward_step),
            (trainer, "train_step", self._train_step),
            (trainer, "should_continue_training", self._should_continue_training),
            (trainer, "train", self._train),
            (trainer.metrics_processor, "log", self._log),
            (trainer.checkpointer, "save", self._save),
        ):
            self._wrapping.around(owner, name, wrapper)

    def _forward_backward_step(self, forward_backward_step: Callable[..., torch.Tensor], **kwargs: Any) -> torch.Tensor:
        loss = forward_backward_step(**kwargs)
        self._losses.append(loss.detach().clone())  # a replayed CUDA graph writes the next loss into the same place
        return loss

    def _train_step(self, train_step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self._losses, self._grad_norm = [], None
        train_step(*args, **kwargs)
        self._monitor.update(self._trainer.step, self._step_loss(), self._grad_norm)

    def _step_loss(self) -> torch.Tensor | None:
        """The ranks' losses add up to the step's; their mean is taken later. Only the last pipeline stage has one."""
        dims = self._trainer.parallel_dims
        if dims.pp_enabled and not self._trainer.pp_has_last_stage:
            return None
        mesh = dims.get_optional_mesh("loss")
        return torch.stack(self._losses).sum() * (1 if mesh is None else mesh.size())

    def _log(
        self,
        log: Callable[..., None],
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        self._grad_norm = grad_norm
        log(step, global_avg_loss, global_max_loss, grad_norm, {**(extra_metrics or {}), **self._monitor.metrics()})

    def _save(self, save: Callable[..., bool], step: int, last_step: bool = False) -> bool:
        checkpoint = self._trainer.config.checkpoint
        due = checkpoint.enable and (last_step or step % checkpoint.interval == 0)  # it is called at every step
        if due and not self._monitor.may_save(nn.ModuleList(self._trainer.model_parts)):
            return False
        return save(step, last_step=last_step)

    def _should_continue_training(self, should_continue_training: Callable[[], bool]) -> bool:
        return should_continue_training() and not self._monitor.should_stop

    def _train(self, train: Callable[[], None]) -> None:
        train()
        self._wrapping.undo()
        self._monitor.finish()
