"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math

from lrsweep.config import TrainConfig


def learning_rate(step: int, peak: float, config: TrainConfig) -> float:
    """Learning rate of ``step``, counted from 1.

    Linear warm-up that reaches ``peak`` at step ``warmup_steps``; then a cosine or a line that reaches
    ``peak · final_lr_ratio`` at the last step, or ``peak`` throughout.
    """
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.schedule == "constant":
        return peak
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    fall = (1 - math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else progress
    return peak * (1 - (1 - config.final_lr_ratio) * fall)
