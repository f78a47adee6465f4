"""Lightning Fabric: a loop of one's own, with Fabric's loggers and checkpoints."""

from __future__ import annotations

from lrsweep.detect import DetectorConfig
from lrsweep.integrations.extras import missing
from lrsweep.integrations.monitor import Action, StabilityMonitor

try:
    from lightning.fabric import Fabric
except ImportError:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise missing("lightning", extra="lightning") from error


def stability_monitor(
    fabric: Fabric, *, action: Action = "log", config: DetectorConfig | None = None, log_every: int = 10
) -> StabilityMonitor:
    """A monitor that logs to the loggers of ``fabric``.

    Call ``update(step, loss, grad_norm)`` on it once an optimizer step, with the losses of all its micro-batches in a
    list if there are several, and the norm that ``fabric.clip_gradients(..., error_if_nonfinite=False)`` returns.
    ``fabric.save`` and ``fabric.load`` take it in their state as it is.
    """
    return StabilityMonitor(action=action, config=config, log=fabric.log_dict, log_every=log_every)
