"""Hugging Face ``Trainer`` (transformers 4.46 and later), and trainers built on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lrsweep.detect import DetectorConfig, Verdict
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor
from lrsweep.integrations.ranks import is_first_rank
from lrsweep.integrations.wrapping import Wrapping

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise missing("transformers", extra="transformers") from error

logger = logging.getLogger(__name__)

STATE_KEY = "lrsweep"
"""Name under which a checkpoint's ``trainer_state.json`` holds the monitor."""


def watch(trainer: Trainer, *, action: Action = "log", config: DetectorConfig | None = None) -> StabilityCallback:
    """Adds a :class:`StabilityCallback` to ``trainer``; to be called before ``train()``."""
    callback = StabilityCallback(trainer, action=action, config=config)
    trainer.add_callback(callback)
    return callback


class StabilityCallback(TrainerCallback):
    """Judges the loss of every optimizer step of the trainer that it is added to; :func:`watch` makes and adds it.

    Callbacks are shown no loss but the one averaged since the last log, so this one reads what ``training_step``
    returns, summed over the micro-batches as the ``Trainer`` itself sums it, and the norm that ``clip_grad_norm_``
    returns. It turns ``logging_nan_inf_filter`` off, which would log a NaN as if the loss had not changed. The keys of
    :class:`~lrsweep.integrations.StabilityMonitor` join every log of the training loss. A fresh ``train()`` begins
    anew; one that resumes goes on with the checkpoint's state.

    Args:
        trainer: The trainer it is added to.
        action: As in :class:`~lrsweep.integrations.StabilityMonitor`.
        config: Thresholds of the detector.
    """

    def __init__(self, trainer: Trainer, *, action: Action = "log", config: DetectorConfig | None = None) -> None:
        self.monitor = StabilityMonitor(action=action, config=config)
        self._trainer = trainer
        self._wrapping = Wrapping()
        self._losses: list[Any] = []
        self._grad_norm: Any = None

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; after ``train()``, the final one."""
        return self.monitor.verdict

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to listen."""
        if args.logging_nan_inf_filter:
            args.logging_nan_inf_filter = False
            if is_first_rank():
                logger.warning(
                    "lrsweep: logging_nan_inf_filter is off from here on, so that a NaN loss is logged as one"
                )
        self.monitor = StabilityMonitor(action=self.monitor.action, config=self.monitor.detector.config)
        if state.global_step > 0 and STATE_KEY in state.stateful_callbacks:
            self.monitor.load_state_dict(state.stateful_callbacks[STATE_KEY])
        self._losses, self._grad_norm = [], None
        self._wrapping.undo()  # a training that raised has left it in place
        self._wrapping.around(self._trainer, "training_step", self._training_step)
        self._wrapping.around(self._trainer, "log", self._log)
        self._wrapping.around(self._trainer.accelerator, "clip_grad_norm_", self._clip_grad_norm)

    def _training_step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        self._losses.append(loss)
        return loss

    def _clip_grad_norm(self, clip_grad_norm: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._grad_norm = clip_grad_norm(*args, **kwargs)
        return self._grad_norm

    def _log(self, log: Callable[..., None], logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        log({**logs, **self.monitor.metrics()} if "loss" in logs else logs, *args, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Judges the step."""
        self.monitor.update(state.global_step, sum(self._losses) if self._losses else None, self._grad_norm)
        self._losses, self._grad_norm = [], None
        return self._steer(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Has its say on the checkpoint of ``save_strategy="epoch"``."""
        return self._steer(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Readies the state for ``save_strategy="best"``, which decides after this."""
        state.stateful_callbacks[STATE_KEY] = self.monitor.state_dict()

    def _steer(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        if self.monitor.should_stop:
            control.should_training_stop = True
        if control.should_save:
            control.should_save = self.monitor.may_save(self._trainer.model)
            state.stateful_callbacks[STATE_KEY] = self.monitor.state_dict()
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judges the last step and the run as a whole."""
        self._wrapping.undo()
        self.monitor.finish()
