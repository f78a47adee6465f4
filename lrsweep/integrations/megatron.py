"""Megatron-LM's ``pretrain``, which has no callbacks; functions as in core 0.20.0 (commit d98e8a64)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from lrsweep.detect import DetectorConfig
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor
from lrsweep.integrations.wrapping import Wrapping


def watch(
    *, action: Action = "log", config: DetectorConfig | None = None, loss_key: str = "lm loss"
) -> StabilityMonitor:
    """Watches the training of this process from here on; call it before ``pretrain``.

    Reads what ``train_step`` hands to ``training_log``: ``loss_dict[loss_key]``, on the pipeline's last stage, and the
    gradient norm. ``stop`` leaves the loop as ``--exit-interval`` does, with exit code 0, but without a checkpoint.
    The monitor's state is not part of the checkpoints: after a resume it begins anew.
    """
    try:
        from megatron.training import training
    except ImportError as error:
        raise missing("megatron.training (Megatron-LM)") from error
    monitor = StabilityMonitor(action=action, config=config)

    def training_log(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # By name, as releases have moved its arguments about.
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        monitor.update(given["iteration"], given["loss_dict"].get(loss_key), given["grad_norm"])
        return original(*args, **kwargs)

    def save_checkpoint_and_time(
        original: Callable[..., Any], iteration: int, model: list[nn.Module], *args: Any, **kwargs: Any
    ) -> None:
        if monitor.may_save(nn.ModuleList(model)):
            original(iteration, model, *args, **kwargs)

    def checkpoint_and_decide_exit(original: Callable[..., bool], *args: Any, **kwargs: Any) -> bool:
        return monitor.should_stop or original(*args, **kwargs)

    def train(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        monitor.finish()
        return result

    wrapping = Wrapping()
    for wrapper in (training_log, save_checkpoint_and_time, checkpoint_and_decide_exit, train):
        wrapping.around(training, wrapper.__name__, wrapper)
    return monitor
