"""Hugging Face Accelerate: a loop of one's own around an ``Accelerator``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lrsweep.detect import DetectorConfig, Verdict
from lrsweep.integrations.extras import missing
from lrsweep.integrations.lagged import Scalar
from lrsweep.integrations.monitor import Action, StabilityMonitor

try:
    from accelerate import Accelerator
except ImportError as error:
    raise missing("accelerate", extra="accelerate") from error


class AcceleratorMonitor(StabilityMonitor):
    """A monitor that knows of gradient accumulation, logs to the trackers, and is part of ``save_state``.

    Args:
        accelerator: Asked after each micro-batch whether the optimizer stepped.
        action: As in :class:`~lrsweep.integrations.StabilityMonitor`.
        config: Thresholds of the detector.
        log_every: Steps between two logs.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        action: Action = "log",
        config: DetectorConfig | None = None,
        log_every: int = 10,
    ) -> None:
        super().__init__(action=action, config=config, log=accelerator.log, log_every=log_every)
        self.step = 0
        self._accelerator = accelerator
        self._losses: list[torch.Tensor] = []
        accelerator.register_for_checkpointing(self)

    def micro_batch(
        self, loss: torch.Tensor, grad_norm: Scalar | None = None, signals: Mapping[str, Scalar] | None = None
    ) -> Verdict:
        """Takes the loss of one micro-batch, as it was given to ``accelerator.backward``; judges the step at its last.

        Call it after the optimizer's step, inside or after ``accelerator.accumulate``. ``grad_norm`` is what
        ``accelerator.clip_grad_norm_`` returned.
        """
        self._losses.append(loss.detach())
        if not self._accelerator.sync_gradients:
            return self.verdict
        self.step += 1
        losses, self._losses = self._losses, []
        return self.update(self.step, losses, grad_norm, signals)

    def state_dict(self) -> dict[str, Any]:
        """As the base class's, with the step."""
        return {**super().state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.step = state["step"]
        self._losses = []
