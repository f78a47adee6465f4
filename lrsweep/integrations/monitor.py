"""The monitor that every integration holds: reads the loss of a step, judges it, and says what follows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

from lrsweep.detect import DetectorConfig, DivergenceDetector, Event, Verdict, VerdictKind
from lrsweep.errors import UserError
from lrsweep.integrations.lagged import LaggedReader, Reading, Scalar
from lrsweep.integrations.ranks import all_finite, is_first_rank

Action = Literal["log", "stop", "raise"]
Log = Callable[[dict[str, float], int], object]

VERDICT_CODES = {kind: float(code) for code, kind in enumerate(get_args(VerdictKind))}
"""``lrsweep/verdict`` as trackers get it, who take numbers only."""

logger = logging.getLogger(__name__)


class DivergenceError(RuntimeError):
    """A monitored run diverged or went non-finite, and its ``action`` is ``raise``."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(_told(verdict))
        self.verdict = verdict


class StabilityMonitor:
    """Watches a training run for divergence, in a loop of one's own or inside another trainer.

    Decisions fall in :meth:`update` and :meth:`finish` alone, on values that are the same on all ranks, so all ranks
    decide alike at the same step. On a GPU, and among several ranks, step t is judged in the update of step t + 1. As
    a context manager it calls :meth:`finish` at the end of the block, unless the block raised.

    | key that :meth:`metrics` gives | meaning |
    |---|---|
    | ``lrsweep/verdict`` | 0 stable, 1 diverged, 2 nonfinite, 3 stalled |
    | ``lrsweep/spikes``, ``lrsweep/outliers`` | events so far |
    | ``lrsweep/nonfinite`` | non-finite losses so far |
    | ``lrsweep/loss`` | the last loss judged: of one step, mean over micro-batches and ranks |

    Args:
        action: What follows when the run diverges or goes non-finite. ``log``: a warning; ``stop``: ``should_stop``
            turns true; ``raise``: a :class:`DivergenceError`.
        config: Thresholds of the detector.
        log: Called with the metrics and the step every ``log_every`` steps.
        log_every: Steps between two calls of ``log``.
        across_ranks: False where every loss given is already the mean over all ranks.

    Raises:
        UserError: if ``action`` is none of the three.
    """

    def __init__(
        self,
        *,
        action: Action = "log",
        config: DetectorConfig | None = None,
        log: Log | None = None,
        log_every: int = 10,
        across_ranks: bool = True,
    ) -> None:
        if action not in get_args(Action):
            raise UserError(f"action={action!r} is unknown: give one of {', '.join(get_args(Action))}")
        self.action = action
        self.detector = DivergenceDetector(config)
        self.verdict = self.detector.verdict
        self._log = log
        self._log_every = log_every
        self._reader = LaggedReader(across_ranks=across_ranks)
        self._updates = 0
        self._loss: float | None = None
        self._nonfinite = 0

    @property
    def should_stop(self) -> bool:
        """Whether the loop is to end now."""
        return self.action == "stop" and self.verdict.unstable

    @property
    def events(self) -> tuple[Event, ...]:
        """Outliers and spikes so far."""
        return self.detector.events

    def update(
        self,
        step: int,
        loss: Scalar | Sequence[Scalar] | None,
        grad_norm: Scalar | None = None,
        signals: Mapping[str, Scalar] | None = None,
    ) -> Verdict:
        """Takes one optimizer step and gives the verdict so far. Every rank must call it at the same steps.

        ``loss`` in nats: a number, a tensor on any device (not waited for), or those of the step's micro-batches, whose
        mean is taken; None where this rank has none, as on the early stages of a pipeline. NaN and infinity are losses
        like others. ``signals`` are read along and given to the detector; all ranks must give the same names.
        """
        self._updates += 1
        self._reader.put(step, {**(signals or {}), "loss": _step_loss(loss), "grad_norm": grad_norm})
        self._judge(self._reader.take())
        if self._log is not None and step % self._log_every == 0:
            self._log(self.metrics(), step)
        return self._conclude(self.detector.verdict)

    def finish(self) -> Verdict:
        """The verdict if the run ends here: judges the last step, and how the curve ended."""
        self._judge(self._reader.take(everything=True))
        if self._updates and self._loss is None:
            logger.warning("lrsweep was given no loss in %d steps and has judged nothing", self._updates)
        return self._conclude(self.detector.finish())

    def _judge(self, readings: list[Reading]) -> None:
        for reading in readings:
            known = {name: value for name, value in reading.values.items() if value is not None}
            loss, grad_norm = known.pop("loss", None), known.pop("grad_norm", None)
            self.detector.update(reading.step, loss, grad_norm, signals=known)
            if loss is not None:
                self._loss = loss
                self._nonfinite += not math.isfinite(loss)

    def _conclude(self, verdict: Verdict) -> Verdict:
        if verdict.kind not in ("stable", self.verdict.kind) and is_first_rank():
            logger.warning("lrsweep: %s", _told(verdict))
        self.verdict = verdict
        if verdict.unstable and self.action == "raise":
            raise DivergenceError(verdict)
        return verdict

    def may_save(self, model: nn.Module) -> bool:
        """Whether a checkpoint of ``model`` may take the place of an earlier one; warns where not.

        It may not if a weight on any rank is non-finite; nor, unless ``action`` is ``log``, while a run that ended here
        would be judged diverged or non-finite, which is told sooner than the verdict that ends it. Blocks until the
        device is done, as saving does, and every rank must call it.
        """
        here = self.detector.finish()
        if here.unstable and self.action != "log":
            reason = f"ending here the run would be {here.kind}"
        elif not all_finite(model):
            reason = "its weights are not all finite"
        else:
            return True
        if is_first_rank():
            logger.warning("lrsweep: no checkpoint is written here: %s", reason)
        return False

    def metrics(self) -> dict[str, float]:
        """What is known so far, for a tracker; the keys are in the table above, ``lrsweep/loss`` only once known."""
        kinds = [event.kind for event in self.events]
        metrics = {
            "lrsweep/verdict": VERDICT_CODES[self.verdict.kind],
            "lrsweep/spikes": float(kinds.count("spike")),
            "lrsweep/outliers": float(kinds.count("outlier")),
            "lrsweep/nonfinite": float(self._nonfinite),
        }
        return metrics if self._loss is None else {**metrics, "lrsweep/loss": self._loss}

    def state_dict(self) -> dict[str, Any]:
        """JSON values. Waits for the step last given but does not judge it, so one rank alone may call it."""
        return {
            "detector": self.detector.state_dict(),
            "pending": self._reader.state_dict(),
            "nonfinite": self._nonfinite,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave, on every rank; later decisions are those of an unbroken run."""
        self.detector.load_state_dict(state["detector"])
        self.verdict = self.detector.verdict
        self._reader.load_state_dict(state["pending"])
        self._nonfinite = state["nonfinite"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()


def _told(verdict: Verdict) -> str:
    since = "" if verdict.onset is None else f", since step {verdict.onset}"
    return f"{verdict.kind} at step {verdict.step}{since}: {verdict.reason}"


def _step_loss(loss: Scalar | Sequence[Scalar] | None) -> Scalar | None:
    if not isinstance(loss, Sequence):
        return loss
    if not loss:
        return None
    parts = [part.detach().reshape(()) if isinstance(part, torch.Tensor) else torch.tensor(part) for part in loss]
    return torch.stack(parts).float().mean()
