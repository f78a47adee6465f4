"""The training step: forward, backward, clip, guard, update and all statistics, with nothing that waits for the host.

An :class:`Engine` serves every learning rate and seed of one model: batches, learning rates and the position within
the interval are device tensors, and the statistics of an interval leave the device in one copy. On a GPU each block is
compiled and the whole step is captured in a CUDA graph; elsewhere the same function runs eagerly.

Legend: R steps of an interval, M micro-batches of a step, B batch, T sequence, N layers, S statistics a layer,
P columns of the moments, H heads.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsweep.config import Body, ModelShape, TrainConfig, TrialSpec
from lrsweep.model import GPT, ProbeLevel, gpu_embedding, init_weights
from lrsweep.model.block import Seen
from lrsweep.model.gpu_loss import Beside
from lrsweep.model.moments import LogitMoments, Moments, SiteMoments, columns, joined, n_columns, site_moments
from lrsweep.schemes import Scheme
from lrsweep.train import gpu_step
from lrsweep.train.capture import Graphs, streams
from lrsweep.train.chunks import loss_by_chunks, n_chunks
from lrsweep.train.compilation import LossSums, OwnKernels, compile_model, wake_compilers
from lrsweep.train.guard import Guard, guard
from lrsweep.train.halves import Halves, give_halves, refresh
from lrsweep.train.optimizers import OPTIMIZERS, Optimizer, groups_of, keeps_halves
from lrsweep.train.ranks import Ranks
from lrsweep.train.staging import Staging

SCALARS = ("loss", "grad_norm", "update_norm", "log_z", "skipped")
"""Per-step statistics: training loss (nats), gradient norm before the clip, ‖Δθ‖/‖θ‖, mean log Z, 1 if guarded."""
_SHORT_S = 1.0
"""Seconds of an interval up to which the host's part of it shows, and one trained in vain does not."""
_EVAL_LOGITS = 2**27
"""Output logits that an evaluation holds at a time, in fp32 and several times over: nothing is fused there."""


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
        capture: capture the step in a CUDA graph; None: on a GPU.
        compiled: compile the blocks and the loss; None: as ``capture``.
        ranks: of a trial on several devices, the others; each takes its share of every batch.
    """

    def __init__(
        self,
        key: EngineKey,
        *,
        capture: bool | None = None,
        compiled: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.key, self._ranks = key, ranks
        self.device = torch.device(key.device)
        capture = self.device.type == "cuda" if capture is None else capture
        compiled = capture if compiled is None else compiled
        if compiled:
            wake_compilers()
        train, seq = key.train, key.shape.seq_len
        self._dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        """Of products."""
        n_ranks = 1 if ranks is None else ranks.size
        share = train.batch_size // n_ranks
        micro = min(train.micro_batch or share, share)
        self._micros = share // micro
        assert self._micros * micro * n_ranks == train.batch_size
        with self.device:
            self.model = GPT(key.scheme, key.body, key.shape)
            self.stat_names = self.model.stat_names
            interval, n_layers = train.report_every, key.shape.n_layers
            self._windows_RMxBxT = torch.zeros(interval * self._micros, micro, seq + 1, dtype=torch.int32)
            self._lrs_R = torch.zeros(interval)
            self._window, self._position = (torch.zeros(1, dtype=torch.int64) for _ in range(2))
            self._scalars_RxS = torch.zeros(interval, len(SCALARS))
            cap = self.model.score.cap
            self._columns_2xRxNxP = torch.zeros(2, interval, n_layers, n_columns(cap))
            self._lr = torch.zeros(())
            self._live = torch.ones((), dtype=torch.bool)
            self._sums = torch.zeros(3)
            self._objective = torch.tensor([1.0, 0.0, 0.0])
            """Of the three, the one to minimize."""
            self._moments = Moments.zeros(n_layers, key.shape.n_heads, cap, self.device)
            self._orders_RMx2xM: Tensor | None = None
            if gpu_embedding.serves(self.model.embedding):
                self._orders_RMx2xM = torch.zeros(interval * self._micros, 2, micro * seq, dtype=torch.int32)
        there = self._windows_RMxBxT, self._lrs_R, self._scalars_RxS, self._columns_2xRxNxP
        self._staging = [Staging(*there) for _ in range(2)]
        """One is filled while the device is at the other."""
        self._interval_s = math.inf
        self.initial_losses: dict[tuple[int, str], float] = {}
        """Held-out loss that a seed's weights begin with on a corpus, by its hash: all LRs' alike."""
        self._parameters: list[Tensor] = list(self.model.parameters())
        groups = groups_of(self.model, train, key.weight_decay)
        # Whoever moves weights after the optimizer has moved them makes its own account of the update void.
        moved_later = key.scheme.geometry != "free" or key.scheme.qk_clip is not None
        self._chunks = n_chunks(micro * seq, key.shape.vocab_size)
        """Parts of a micro-batch's loss."""
        self._halves: Halves = {}
        added_up = self._micros > 1 or ranks is not None
        if self._dtype == torch.bfloat16 and keeps_halves(train, self._lr) and not (moved_later or added_up):
            self._halves = give_halves(self.model, without=self.model.head if self._chunks > 1 else None)
        self._optimizer: Optimizer = OPTIMIZERS[train.optimizer](groups, train, self._lr, self._halves)
        self._before: list[Tensor] = []
        if moved_later or not self._optimizer.accounts:
            self._before = [torch.empty_like(p) for p in self._parameters]
        self._side: torch.cuda.Stream | None = None
        self._graphs: Graphs | None = None
        self._own_kernels: OwnKernels | None = None
        if self.device.type == "cuda":
            ahead, self._side = streams(self.device)
            if capture:
                self._graphs = Graphs((False, True) if self._micros > 1 else (True,), ahead)
            if compiled:
                self._own_kernels = OwnKernels(
                    self.model, self._optimizer, self._dtype, self.device, beside_loss=self._chunks > 1
                )
        if self._micros > 1:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        self._clear()
        if ranks is not None:
            ranks.watch(self._parameters, [list(block.parameters()) for block in self.model.blocks])
        self._loss_sums: LossSums = self.model.loss_sums
        if compiled:
            self._compile()

    def _compile(self, backend: str = "inductor") -> None:
        self._loss_sums = compile_model(self.model, self.device, backend)

    def reset(self, seed: int) -> None:
        """Initial weights of ``seed``, fresh optimizer; in place, so that a captured graph stays valid."""
        init_weights(self.model, seed)
        refresh(self._halves)
        self.model.train()
        for _, state in self._optimizer.states():
            for value in state.values():
                value.zero_()

    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return self.model.n_params()

    def _autocast(self) -> torch.autocast:
        # A capture must not reuse a cast that was cached outside it.
        enabled = self._dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _arm(self, complete: bool) -> None:
        """Say whether the next backward completes the gradients, so that other ranks may have them as they come."""
        if self._ranks is not None:
            self._ranks.armed = complete

    def _forward_backward(
        self, probe: ProbeLevel, last: bool
    ) -> tuple[Tensor, list[Seen], SiteMoments | None, list[LogitMoments]]:
        """Gradients of one micro-batch, added to those at hand.

        Returns:
            Sums over its tokens (3); what its blocks keep, which the branch beside may still be reading; and, as far as
            that has been measured, the moments of its sites, and of the logits of its first layers.
        """
        tokens_BxT, targets_BxT, order_2xM = self._take()
        with self._autocast():
            x_BxTxD, seen = self.model.hidden(tokens_BxT, probe, order_2xM)
            head_VxD = self.model.head.matrix()
        if self._own_kernels is not None:
            self._own_kernels.wait()
        with self._beside():
            sites = site_moments(seen)
        if self._chunks == 1:
            sums = self._sums_of(x_BxTxD, head_VxD, targets_BxT)
            self._arm(last)
            sums.backward(self._objective)  # type: ignore[no-untyped-call]
            return sums.detach(), seen, sites, []
        # The products of queries and keys keep the tensor cores busy, the loss of so many logits only the memory. Half
        # the last micro-batch's layers are left for the update.
        n_layers = len(seen) // (2 if last else 1) if seen[0].logits else 0
        edges = [i * n_layers // self._chunks for i in range(self._chunks + 1)]
        parts = iter([seen[first:end] for first, end in pairwise(edges)])
        logits: list[LogitMoments] = []

        def measure_some() -> None:
            with self._beside():
                logits.extend(self._logit_moments(next(parts)))

        beside = Beside(start=measure_some, wait=self._wait_beside) if n_layers else None
        self._arm(False)  # What lies behind the stream gets a part of its gradient with each chunk.
        sums_of = functools.partial(self._sums_of, beside=beside)
        sums, *gradients = loss_by_chunks(
            sums_of, x_BxTxD, head_VxD, targets_BxT, chunks=self._chunks, dtype=self._dtype
        )
        self._arm(last)
        torch.autograd.backward([x_BxTxD, head_VxD], gradients)
        return sums, seen, sites, logits

    def _take(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens and targets (B, T) of the next micro-batch, and their order, where the embedding asks for it."""
        windows, orders, window = self._windows_RMxBxT, self._orders_RMx2xM, self._window
        batch: tuple[Tensor, Tensor, Tensor | None]
        if orders is not None:
            batch = gpu_step.take(windows, orders, window)
        else:
            window_BxT = windows.index_select(0, window)[0].long()
            batch = window_BxT[:, :-1], window_BxT[:, 1:], None
        window += 1
        return batch

    def _logit_moments(self, layers: Sequence[Seen]) -> list[LogitMoments]:
        """One, or none where the layers kept no logits."""
        moments = self.model.logit_moments(layers) if layers else None
        return [] if moments is None else [moments]

    def _sums_of(
        self,
        x_BxTxD: Tensor,
        head_VxD: Tensor,
        targets_BxT: Tensor,
        *,
        beside: Beside | None = None,
    ) -> Tensor:
        """A part of the means over the batch."""
        per_token = 1 / (self.key.train.batch_size * self.key.shape.seq_len)
        with self._autocast():
            return self._loss_sums(x_BxTxD, head_VxD, targets_BxT, self.key.train.z_loss, per_token, beside)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On a GPU, a branch of the graph that runs beside what follows, and gives way to it."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def _wait_beside(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)

    def _step(self, probe: ProbeLevel, last: bool = True) -> None:
        """One micro-batch; with the ``last`` of a step, its update and statistics."""
        sums, seen, sites, logits = self._forward_backward(probe, last)
        with torch.no_grad():
            with self._beside():  # The update, too, keeps only the memory busy.
                logits += self._logit_moments(seen[sum(len(heads_NxH) for heads_NxH, _ in logits) :])
                moments = Moments(sites, joined(logits))
                if self._micros > 1:
                    moments = self._add_up(moments)
            if self._micros > 1:
                self._sums += sums
                sums = self._sums
            if last:
                self._update(sums, moments, probe)
            else:
                self._wait_beside()

    def _add_up(self, moments: Moments) -> Moments:
        """With those of the step's micro-batches before; in place."""
        total = self._moments.like(moments)
        for mine, new in zip(total.sums(), moments.sums(), strict=True):
            mine += new
        for mine, new in zip(total.maxima(), moments.maxima(), strict=True):
            torch.maximum(mine, new, out=mine)
        return total

    def _update(self, sums: Tensor, moments: Moments, probe: ProbeLevel) -> None:
        if self._ranks is not None:
            self._ranks.finish()
            self._ranks.sum_(sums)
        torch.index_select(self._lrs_R, 0, self._position, out=self._lr.view(1))
        verdict = guard(self._optimizer.gradient_squares(), sums[0], self._live, self.key.train.clip)
        if self._before:
            torch._foreach_copy_(self._before, self._parameters)
        moved = self._optimizer.step(verdict)
        self.model.constrain(verdict.finite)
        self._wait_beside()
        if self._ranks is not None:
            for sum_ in moments.sums():
                self._ranks.sum_(sum_)
            for maximum in moments.maxima():
                self._ranks.max_(maximum)
        if moments.logits is not None:
            self.model.clip_heads(moments.logits[0], verdict.finite)
        moved = self._moved() if self._before or moved is None else moved
        self._record(sums, verdict, moved, moments.asked(probe))
        self._clear()

    def _record(self, sums: Tensor, verdict: Guard, moved_Kx2xQ: Tensor, moments: Moments) -> None:
        """Write the step's row, and count on."""
        scalars, columns_2xRxNxP, position = self._scalars_RxS, self._columns_2xRxNxP, self._position
        if gpu_step.serves(scalars):
            norm, finite, _ = verdict
            gpu_step.record(scalars, columns_2xRxNxP, position, sums, norm, finite, moved_Kx2xQ, moments)
            return
        moved, length = moved_Kx2xQ.sum(dim=(0, 2))
        row = torch.stack([sums[1], verdict.norm, (moved / length).sqrt(), sums[2], (~verdict.finite).float()])
        scalars.index_copy_(0, position, row[None])
        if any(moments):
            columns_2xRxNxP.index_copy_(1, position, columns(moments, self.model.score.cap)[:, None])
        position += 1

    def _moved(self) -> Tensor:
        """‖Δθ‖² and ‖θ‖² (1, 2, 1), from the copy made before the update."""
        weight_norm = torch.nn.utils.get_total_norm(self._before)
        torch._foreach_sub_(self._before, self._parameters)
        norms_2 = torch.stack([torch.nn.utils.get_total_norm(self._before), weight_norm])
        return norms_2.square()[None, :, None]

    def _clear(self) -> None:
        """Gradients and sums as a step finds them."""
        if self._micros == 1:
            for tensor in (*self._parameters, *self._halves.values()):
                tensor.grad = None
            return
        # Kept, so that every micro-batch of a captured step adds to the same memory.
        torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])
        self._sums.zero_()
        for sums in self._moments.sums():
            sums.zero_()
        for maxima in self._moments.maxima():
            maxima.fill_(-torch.inf)

    @contextlib.contextmanager
    def _nothing_moves(self) -> Iterator[None]:
        """Steps pass for not finite, so they leave weights and optimizer alone; buffers are put back."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self._live.fill_(False)
        try:
            yield
        finally:
            self._live.fill_(True)
            self._clear()
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)

    def _capture_missing(self, probes: Sequence[ProbeLevel]) -> None:
        """Capture the step, on the batch at hand, at levels that are new."""
        if self._graphs is None or not (missing := self._graphs.missing(probes)):
            return
        try:
            with self._nothing_moves():
                self._graphs.capture(self._step, missing, self._rewind, self._optimizer.settle)
        except (RuntimeError, NotImplementedError) as error:
            warnings.warn(f"step not captured, running it eagerly: {str(error).splitlines()[0]}", stacklevel=3)
            self._graphs = None

    def _rewind(self) -> None:
        self._position.zero_()
        self._window.zero_()

    @property
    def lookahead(self) -> int:
        """Intervals worth starting before one is read, so that a GPU does not wait for the host: one if they are short.

        A trial that turns out to have ended has trained the next in vain. Ranks would have to agree.
        """
        return int(self._ranks is None and self._interval_s < _SHORT_S)

    def run(self, batches_RxBxT: NDArray[np.integer], lrs: Sequence[float], probes: Sequence[ProbeLevel]) -> Interval:
        """Train ``len(lrs)`` steps, at most ``report_every``, and fetch their statistics in one copy.

        Args:
            batches_RxBxT: token ids, T + 1 of them in a row: inputs and targets. Of several ranks each takes its rows.
            lrs: learning rate of each step.
            probes: what to measure at each step.
        """
        return self.start(batches_RxBxT, lrs, probes)()

    def start(
        self, batches_RxBxT: NDArray[np.integer], lrs: Sequence[float], probes: Sequence[ProbeLevel]
    ) -> Callable[[], Interval]:
        """As :meth:`run`, but a GPU may still be at it: what is returned waits, and is to be called before the
        second ``start`` after this one.
        """
        n, host = len(lrs), self._staging[0]
        assert n == len(probes) == len(batches_RxBxT)
        self._staging.reverse()
        host.seconds()  # It may have been left unread.
        if self._ranks is not None:
            batches_RxBxT = batches_RxBxT[:, self._ranks.share(batches_RxBxT.shape[1])]
        windows = torch.from_numpy(batches_RxBxT.astype(np.int32)).view(n * self._micros, -1, batches_RxBxT.shape[-1])
        for mine, given, on_device in (
            (host.windows_RMxBxT, windows, self._windows_RMxBxT),
            (host.lrs_R, torch.tensor(lrs), self._lrs_R),
        ):
            mine[: len(given)].copy_(given)
            on_device[: len(given)].copy_(mine[: len(given)], non_blocking=True)
        if self._orders_RMx2xM is not None:
            tokens_RMxM = self._windows_RMxBxT[: len(windows), :, :-1].flatten(1)
            self._orders_RMx2xM[: len(windows)].copy_(gpu_embedding.in_order(tokens_RMxM))
        self._capture_missing(probes)
        host.mark(0)
        self._columns_2xRxNxP.fill_(torch.nan)
        self._rewind()
        for probe in probes:
            for micro in range(self._micros):
                last = micro == self._micros - 1
                if self._graphs is not None:
                    self._graphs.replay(probe, last)
                else:
                    self._step(probe, last)
        host.scalars_RxS.copy_(self._scalars_RxS, non_blocking=True)
        host.columns_2xRxNxP.copy_(self._columns_2xRxNxP, non_blocking=True)
        host.mark(1)

        def read() -> Interval:
            self._interval_s = host.seconds()
            # Roots and quotients are taken on the host, where they cost the step no kernels.
            batch, seq = self.key.train.batch_size, self.key.shape.seq_len
            layers = self.model.statistics(host.columns_2xRxNxP[:, :n], batch, seq)
            return Interval(host.scalars_RxS[:n].numpy().copy(), layers.numpy())

        return read

    @torch.no_grad()
    def evaluate(self, windows_WxT: NDArray[np.integer]) -> float:
        """Mean loss in nats per token on fixed windows of T + 1 tokens; NaN or inf if the model has gone there."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        micro, at_once = self._windows_RMxBxT.shape[1], max(1, _EVAL_LOGITS // self.key.shape.vocab_size)
        # Compiled blocks would compile once more for a pass without gradients that runs twice a trial.
        with torch.compiler.set_stance("force_eager"), self._autocast():
            head_VxD = self.model.head.matrix()
            for rows in np.array_split(windows_WxT, -(-len(windows_WxT) // micro)):
                window = torch.from_numpy(rows.astype(np.int64)).to(self.device)
                x_BxTxD, _ = self.model.hidden(window[:, :-1], ProbeLevel.OFF)
                parts = x_BxTxD.flatten(0, 1).split(at_once), window[:, 1:].flatten().split(at_once)  # type: ignore[no-untyped-call]
                for x, targets in zip(*parts, strict=True):
                    total += self.model.loss_sums(x[None], head_VxD, targets[None])[1].double()
        self.model.train()
        mean: float = total.item() / (len(windows_WxT) * (windows_WxT.shape[1] - 1))
        return mean
