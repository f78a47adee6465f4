"""The training step: forward, backward, clip, guard, update and all statistics, with nothing that waits for the host.

An :class:`Engine` serves every learning rate and seed of one model: batches, learning rates and the position within
the interval are device tensors, and the statistics of an interval leave the device in one copy. On a GPU each block is
compiled and the whole step is captured in a CUDA graph; elsewhere the same function runs eagerly.

Legend: R steps of an interval, B batch, T sequence, N layers, S statistics a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsweep.config import Body, ModelShape, TrainConfig, TrialSpec
from lrsweep.model import GPT, Probe, init_weights, next_token_loss
from lrsweep.schemes import Scheme
from lrsweep.train.optimizers import OPTIMIZERS, Optimizer, groups_of
from lrsweep.train.ranks import Ranks

SCALARS = ("loss", "grad_norm", "update_norm", "log_z", "skipped")
"""Per-step statistics: training loss (nats), gradient norm before the clip, ‖Δθ‖/‖θ‖, mean log Z, 1 if guarded."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Statistics of consecutive steps."""

    scalars_RxS: NDArray[np.float32]
    """Columns as :data:`SCALARS`."""
    layers_RxNxS: NDArray[np.float32]
    """Columns as ``Engine.stat_names``; NaN where not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What a compiled and captured step depends on; trials that agree on it share an engine."""

    scheme: Scheme
    body: Body
    shape: ModelShape
    train: TrainConfig
    device: str
    weight_decay: float

    @classmethod
    def of(cls, spec: TrialSpec) -> EngineKey:
        """The key of a trial. Independent weight decay is λ/η_peak per unit of LR, so it depends on the peak."""
        decay = spec.train.weight_decay
        if spec.train.decay_mode == "independent":
            decay /= spec.lr
        return cls(
            scheme=spec.scheme,
            body=spec.body,
            shape=spec.shape,
            train=spec.train,
            device=spec.device,
            weight_decay=decay,
        )


class Engine:
    """Model, optimizer and step of one :class:`EngineKey`.

    Args:
        key: what to build.
        capture: compile the blocks and capture the step in a CUDA graph; None: on a GPU.
        ranks: the processes that share each batch, all of which call the same methods with the same arguments.
    """

    def __init__(self, key: EngineKey, *, capture: bool | None = None, ranks: Ranks | None = None) -> None:
        self.key = key
        self._ranks = ranks
        self._rows = slice(None) if ranks is None else ranks.share(key.train.batch_size)
        self.device = torch.device(key.device)
        self._capture = self.device.type == "cuda" if capture is None else capture
        with self.device:
            self.model = GPT(key.scheme, key.body, key.shape)
            interval, seq = key.train.report_every, key.shape.seq_len
            batch = len(range(key.train.batch_size)[self._rows])
            self._batches_RxBxT = torch.zeros(interval, batch, seq + 1, dtype=torch.int32)
            self._lrs_R = torch.zeros(interval)
            self._position = torch.zeros(1, dtype=torch.int64)
            self._scalars_RxS = torch.zeros(interval, len(SCALARS))
            self._layers_RxNxS = torch.zeros(interval, key.shape.n_layers, len(self.model.stat_names))
            self._lr = torch.zeros(())
            self._before = [torch.empty_like(p) for p in self.model.parameters()]
        self.stat_names = self.model.stat_names
        self._parameters: list[Tensor] = list(self.model.parameters())
        if ranks is not None:
            ranks.watch(self._parameters, [list(block.parameters()) for block in self.model.blocks])
        groups = groups_of(self.model, key.train, key.weight_decay)
        self._optimizer: Optimizer = OPTIMIZERS[key.train.optimizer](groups, key.train, self._lr)
        self._graphs: dict[Probe, torch.cuda.CUDAGraph] = {}
        self._loss: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]] = self.model.loss
        if self._capture:
            # A process that sweeps many schemes would pass dynamo's limit of compilations of one function; graphs
            # captured before stay valid.
            torch.compiler.reset()
            # What autocast leaves in fp32 (logits under a cap, σReparam's power iteration) is left there on purpose.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            for block in self.model.blocks:
                block.compile()
            self._loss = torch.compile(self.model.loss)

    def reset(self, seed: int) -> None:
        """Initial weights of ``seed``, fresh optimizer; in place, so that a captured graph stays valid."""
        init_weights(self.model, seed)
        self.model.train()
        for _, state in self._optimizer.states():
            for value in state.values():
                value.zero_()

    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return self.model.n_params()

    def _autocast(self) -> torch.autocast:
        # A capture must not reuse a cast that was cached outside it.
        enabled = self.key.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _step(self, probe: Probe) -> None:
        position = self._position
        window_BxT = self._batches_RxBxT.index_select(0, position)[0].long()
        self._lr.copy_(self._lrs_R.index_select(0, position)[0])
        with self._autocast():
            x_BxTxD, layers_NxS = self.model.hidden(window_BxT[:, :-1], probe)
            objective, loss, log_z = self._loss(x_BxTxD, window_BxT[:, 1:], self.key.train.z_loss)
        if self._ranks is not None:
            objective = objective / self._ranks.size
        objective.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if self._ranks is not None:
                means = (objective, loss / self._ranks.size, log_z / self._ranks.size)
                (objective, loss, log_z), layers_NxS = self._pooled(self._ranks, means, layers_NxS)
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
            finite = torch.isfinite(objective) & torch.isfinite(grad_norm)
            torch._foreach_copy_(self._before, self._parameters)
            self._optimizer.step(finite, (grad_norm / self.key.train.clip).clamp(min=1.0))
            for parameter in self._parameters:
                parameter.grad = None
            self.model.constrain(finite)
            self.model.clip_heads(finite)
            weight_norm = torch.nn.utils.get_total_norm(self._before)
            torch._foreach_sub_(self._before, self._parameters)
            update_norm = torch.nn.utils.get_total_norm(self._before) / weight_norm
            scalars_S = torch.stack([loss, grad_norm, update_norm, log_z, (~finite).float()])
            self._scalars_RxS.index_copy_(0, position, scalars_S[None])
            if probe != Probe.OFF:
                self._layers_RxNxS.index_copy_(0, position, layers_NxS[None])
            position += 1

    def _pooled(self, ranks: Ranks, means: Sequence[Tensor], layers_NxS: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients summed over ranks; ``means`` of the shares and their statistics as those of the whole batch."""
        ranks.finish()
        summed = torch.stack([mean.detach() for mean in means])
        ranks.sum_(summed)
        for name, buffer in self.model.named_buffers():
            if name.endswith("head_max"):
                ranks.max_(buffer)
        if layers_NxS.numel():
            largest_NxS, squares_NxS = layers_NxS.clone(), layers_NxS.square() / ranks.size
            ranks.max_(largest_NxS)
            ranks.sum_(squares_NxS)
            pooled = (squares_NxS.sqrt() if "rms" in stat else largest_NxS for _, stat in self.stat_names)
            layers_NxS = torch.stack([values_NxS[:, i] for i, values_NxS in enumerate(pooled)], dim=1)
        return list(summed), layers_NxS

    def _prepare(self, probe: Probe) -> None:
        """Capture the step for ``probe`` on the batch at hand; what the steps on the way change is put back."""
        tensors = [*self._parameters, *self.model.buffers()]
        saved = [t.detach().clone() for t in tensors]
        moments = {p: {name: v.clone() for name, v in s.items()} for p, s in self._optimizer.states()}
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._position.zero_()
                    self._step(probe)
            torch.cuda.current_stream().wait_stream(stream)
            self._position.zero_()
            with torch.cuda.graph(graph):
                self._step(probe)
            self._graphs[probe] = graph
        finally:
            for parameter in self._parameters:
                parameter.grad = None
            with torch.no_grad():
                for tensor, old in zip(tensors, saved, strict=True):
                    tensor.copy_(old)
                for parameter, state in self._optimizer.states():
                    for name, value in state.items():
                        value.copy_(moments[parameter][name]) if parameter in moments else value.zero_()

    def _capture_missing(self, probes: Sequence[Probe]) -> None:
        for probe in sorted(set(probes) - set(self._graphs)):
            try:
                self._prepare(probe)
            except (RuntimeError, NotImplementedError) as error:
                warnings.warn(f"step not captured, running it eagerly: {str(error).splitlines()[0]}", stacklevel=3)
                self._capture = False
                return

    def run(self, batches_RxBxT: NDArray[np.integer], lrs: Sequence[float], probes: Sequence[Probe]) -> Interval:
        """Train ``len(lrs)`` steps, at most ``report_every``, and fetch their statistics in one copy.

        Args:
            batches_RxBxT: token ids, T + 1 of them in a row: inputs and targets.
            lrs: learning rate of each step.
            probes: what to measure at each step.
        """
        n = len(lrs)
        assert n == len(probes) == len(batches_RxBxT)
        self._batches_RxBxT[:n].copy_(torch.from_numpy(batches_RxBxT[:, self._rows].astype(np.int32)))
        self._lrs_R[:n].copy_(torch.tensor(lrs))
        if self._capture:
            self._capture_missing(probes)
        self._layers_RxNxS.fill_(torch.nan)
        self._position.zero_()
        for probe in probes:
            if self._capture:
                self._graphs[probe].replay()
            else:
                self._step(probe)
        return Interval(self._scalars_RxS[:n].cpu().numpy().copy(), self._layers_RxNxS[:n].cpu().numpy().copy())

    @torch.no_grad()
    def evaluate(self, windows_WxT: NDArray[np.integer]) -> float:
        """Mean loss in nats per token on fixed windows of T + 1 tokens; NaN or inf if the model has gone there."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        # Compiled blocks would compile once more for a pass without gradients that runs twice a trial.
        with torch.compiler.set_stance("force_eager"), self._autocast():
            for rows in np.array_split(windows_WxT, -(-len(windows_WxT) // self.key.train.batch_size)):
                window = torch.from_numpy(rows.astype(np.int64)).to(self.device)
                loss, _ = next_token_loss(self.model(window[:, :-1])[0], window[:, 1:])
                total += loss.double() * len(rows)
        self.model.train()
        return total.item() / len(windows_WxT)
