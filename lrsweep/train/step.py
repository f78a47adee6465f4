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
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsweep.config import Body, ModelShape, TrainConfig, TrialSpec, mlp_width
from lrsweep.model import GPT, ProbeLevel, gpu_embedding, gpu_loss, init_weights
from lrsweep.model.block import Seen
from lrsweep.model.moments import Moments, SiteMoments, site_moments
from lrsweep.probes import gpu_logits, gpu_tokens
from lrsweep.probes.stats import n_groups
from lrsweep.schemes import Scheme
from lrsweep.train.chunks import loss_by_chunks, n_chunks
from lrsweep.train.halves import Halves, give_halves, refresh
from lrsweep.train.optimizers import OPTIMIZERS, Optimizer, groups_of, keeps_halves
from lrsweep.train.ranks import Ranks

SCALARS = ("loss", "grad_norm", "update_norm", "log_z", "skipped")
"""Per-step statistics: training loss (nats), gradient norm before the clip, ‖Δθ‖/‖θ‖, mean log Z, 1 if guarded."""
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


def _wake_compilers() -> None:
    """Start the processes in which torch compiles kernels, some seconds before the first is wanted."""
    try:
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.wakeup()
    except (ImportError, AttributeError):
        pass  # They then start with the first kernel.


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """What steps are captured from, and a branch that gives way to it.

    The same for all engines of a process: for every stream it sees, cuBLAS takes memory that it does not give back.
    """
    return torch.cuda.Stream(device, priority=-1), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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
        self._capture = self.device.type == "cuda" if capture is None else capture
        compiled = self._capture if compiled is None else compiled
        if compiled:
            _wake_compilers()
        train, seq = key.train, key.shape.seq_len
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
            n_columns = len(self.stat_names) // 2
            self._moments_2xRxNxP = torch.zeros(2, interval, n_layers, n_columns)
            self._lr = torch.zeros(())
            self._live = torch.ones((), dtype=torch.bool)
            self._sums = torch.zeros(3)
            self._objective = torch.tensor([1.0, 0.0, 0.0])
            """Of the three, the one to minimize."""
            shapes = (n_layers, n_columns), (n_layers, n_columns), (n_layers, key.shape.n_heads)
            self._moments = Moments(*(torch.zeros(shape) for shape in shapes))
            self._orders_RMx2xM: Tensor | None = None
            if gpu_embedding.serves(self.model.embedding):
                self._orders_RMx2xM = torch.zeros(interval * self._micros, 2, micro * seq, dtype=torch.int32)
        self._parameters: list[Tensor] = list(self.model.parameters())
        groups = groups_of(self.model, train, key.weight_decay)
        # Whoever moves weights after the optimizer has moved them makes its own account of the update void.
        moved_later = key.scheme.geometry != "free" or key.scheme.qk_clip is not None
        self._halves: Halves = {}
        added_up = self._micros > 1 or ranks is not None
        if train.precision == "bf16" and keeps_halves(train, self._lr) and not (moved_later or added_up):
            chunked = n_chunks(train.batch_size * seq, key.shape.vocab_size) > 1
            self._halves = give_halves(self.model, without=self.model.head if chunked else None)
        self._optimizer: Optimizer = OPTIMIZERS[train.optimizer](groups, train, self._lr, self._halves)
        self._before: list[Tensor] = []
        if moved_later or not self._optimizer.accounts:
            self._before = [torch.empty_like(p) for p in self._parameters]
        self._graphs: dict[tuple[ProbeLevel, bool], torch.cuda.CUDAGraph] = {}
        cuda = self.device.type == "cuda"
        self._ahead: torch.cuda.Stream | None = None
        self._side: torch.cuda.Stream | None = None
        if cuda:
            self._ahead, self._side = _streams(self.device)
        if self._micros > 1:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        self._clear()
        if ranks is not None:
            ranks.watch(self._parameters, [list(block.parameters()) for block in self.model.blocks])
        self._loss_sums: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = self.model.loss_sums
        if compiled:
            self._compile()
        self._own_kernels: threading.Thread | None = None
        if cuda and compiled:
            # Most of their compilation is not Python, and goes on while Python compiles the blocks.
            self._own_kernels = threading.Thread(target=self._compile_own_kernels)
            self._own_kernels.start()

    def _compile(self, backend: str = "inductor") -> None:
        # A process that sweeps many schemes would pass dynamo's limit of compilations of one function; graphs
        # captured before stay valid.
        torch.compiler.reset()
        # What autocast leaves in fp32 (σReparam's power iteration, a clipped softmax) is left there on purpose.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        self.model.score.prepare(self.key.shape.seq_len, self.device)
        # Nothing in these graphs is what the patterns look for, and to look takes two seconds.
        options: dict[str, str | int | bool | Callable[..., Any]] | None
        options = {"pattern_matcher": False} if backend == "inductor" else None
        for block in self.model.blocks:
            block.compile(backend=backend, options=options)
        if not self.model.plain_logits:
            self._loss_sums = torch.compile(self.model.loss_sums, backend=backend, options=options)

    def _compile_own_kernels(self) -> None:
        shape, score = self.key.shape, self.model.score
        dtype = torch.bfloat16 if self.key.train.precision == "bf16" else torch.float32
        with torch.cuda.device(self.device):
            gpu_embedding.warm_up(shape.d_model, self.device)
            if self.model.plain_logits:
                gpu_loss.warm_up(shape.vocab_size, dtype, self.device)
            q_BxHxTxK = torch.zeros(1, 1, shape.n_heads, shape.d_head, dtype=dtype, device=self.device).transpose(1, 2)
            if gpu_logits.serves(q_BxHxTxK):
                gpu_logits.causal_logit_sums([(q_BxHxTxK, q_BxHxTxK)], score.scale, score.cap)
                heads, wide = shape.n_heads, n_groups(shape.d_model)
                fc1 = n_groups(mlp_width(self.key.scheme, self.key.body, shape.d_model))
                gpu_tokens.warm_up([heads, heads, wide, wide, fc1, wide], self.device)
            self._optimizer.warm_up()

    def _await_own_kernels(self) -> None:
        if self._own_kernels is not None:
            self._own_kernels.join()
            self._own_kernels = None

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
        enabled = self.key.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _arm(self, complete: bool) -> None:
        """Say whether the next backward completes the gradients, so that other ranks may have them as they come."""
        if self._ranks is not None:
            self._ranks.armed = complete

    def _forward_backward(self, probe: ProbeLevel, last: bool) -> tuple[Tensor, list[Seen], SiteMoments | None]:
        """Gradients of one micro-batch, added to those at hand; sums over its tokens (3), and what its blocks keep."""
        window_BxT = self._windows_RMxBxT.index_select(0, self._window)[0].long()
        orders = self._orders_RMx2xM
        order_2xM = None if orders is None else orders.index_select(0, self._window)[0]
        self._window += 1
        targets_BxT = window_BxT[:, 1:]
        with self._autocast():
            x_BxTxD, seen = self.model.hidden(window_BxT[:, :-1], probe, order_2xM)
            head_VxD = self.model.head.matrix()
        self._await_own_kernels()
        with self._beside():
            sites = site_moments(seen)
        chunks = n_chunks(targets_BxT.numel(), self.key.shape.vocab_size)
        if chunks == 1:
            sums = self._sums_of(x_BxTxD, head_VxD, targets_BxT)
            self._arm(last)
            sums.backward(self._objective)  # type: ignore[no-untyped-call]
            return sums.detach(), seen, sites
        self._arm(False)  # What lies behind the stream gets a part of its gradient with each chunk.
        sums, *gradients = loss_by_chunks(self._sums_of, x_BxTxD, head_VxD, targets_BxT, chunks=chunks)
        self._arm(last)
        torch.autograd.backward([x_BxTxD, head_VxD], gradients)
        return sums, seen, sites

    def _sums_of(self, x_BxTxD: Tensor, head_VxD: Tensor, targets_BxT: Tensor) -> Tensor:
        """A part of the means over the batch."""
        per_token = 1 / (self.key.train.batch_size * self.key.shape.seq_len)
        with self._autocast():
            return self._loss_sums(x_BxTxD, head_VxD, targets_BxT, self.key.train.z_loss, per_token)

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
        sums, seen, sites = self._forward_backward(probe, last)
        with torch.no_grad():
            # The products of queries and keys keep the tensor cores busy, the update only the memory.
            with self._beside():
                moments = self.model.moments(seen, probe, sites)
            if self._micros > 1:
                self._wait_beside()
                sums, moments = self._add_up(sums, moments)
            if last:
                self._update(sums, moments, probe)

    def _add_up(self, sums: Tensor, moments: Moments | None) -> tuple[Tensor, Moments | None]:
        """With those of the step's micro-batches before; in place."""
        self._sums += sums
        if moments is None:
            return self._sums, None
        torch.add(self._moments.sums_NxP, moments.sums_NxP, out=self._moments.sums_NxP)
        for mine, new in zip(self._moments[1:], moments[1:], strict=True):
            torch.maximum(mine, new, out=mine)
        return self._sums, self._moments

    def _update(self, sums: Tensor, moments: Moments | None, probe: ProbeLevel) -> None:
        if self._ranks is not None:
            self._ranks.finish()
            self._ranks.sum_(sums)
        position = self._position
        self._lr.copy_(self._lrs_R.index_select(0, position)[0])
        grad_norm = self._optimizer.gradient_norm()
        finite = torch.isfinite(sums[0]) & torch.isfinite(grad_norm) & self._live
        if self._before:
            torch._foreach_copy_(self._before, self._parameters)
        squares = self._optimizer.step(finite, (grad_norm / self.key.train.clip).clamp(min=1.0))
        self.model.constrain(finite)
        self._wait_beside()
        if moments is not None:
            if self._ranks is not None:
                self._ranks.sum_(moments.sums_NxP)
                self._ranks.max_(moments.maxima_NxP)
                self._ranks.max_(moments.head_maxima_NxH)
            self.model.clip_heads(moments.head_maxima_NxH, finite)
        update_norm = self._update_norm() if self._before or squares is None else (squares[0] / squares[1]).sqrt()
        scalars_S = torch.stack([sums[1], grad_norm, update_norm, sums[2], (~finite).float()])
        self._scalars_RxS.index_copy_(0, position, scalars_S[None])
        if probe != ProbeLevel.OFF:
            assert moments is not None
            both_2xNxP = torch.stack([moments.sums_NxP, moments.maxima_NxP])
            self._moments_2xRxNxP.index_copy_(1, position, both_2xNxP[:, None])
        position += 1
        self._clear()

    def _update_norm(self) -> Tensor:
        """‖Δθ‖/‖θ‖ from the copy made before the update."""
        weight_norm = torch.nn.utils.get_total_norm(self._before)
        torch._foreach_sub_(self._before, self._parameters)
        return torch.nn.utils.get_total_norm(self._before) / weight_norm

    def _clear(self) -> None:
        """Gradients and sums as a step finds them."""
        if self._micros == 1:
            for tensor in (*self._parameters, *self._halves.values()):
                tensor.grad = None
            return
        # Kept, so that every micro-batch of a captured step adds to the same memory.
        torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])
        self._sums.zero_()
        self._moments.sums_NxP.zero_()
        self._moments.maxima_NxP.fill_(-torch.inf)
        self._moments.head_maxima_NxH.fill_(-torch.inf)

    def _capture_step(self, probes: set[ProbeLevel]) -> None:
        """Capture the step for ``probes``, on the batch at hand, and anew for those that have been captured already.

        The steps on the way pass for not finite, so they leave weights and optimizer alone; buffers are put back.
        """
        levels = sorted(probes | {probe for probe, _ in self._graphs})
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        parts = [False, True] if self._micros > 1 else [True]
        # A graph keeps the memory of its activations: with those of an older one there might be too little for a step.
        self._graphs.clear()
        torch.cuda.empty_cache()
        assert self._ahead is not None
        self._ahead.wait_stream(torch.cuda.current_stream())
        self._live.fill_(False)
        try:
            with torch.cuda.stream(self._ahead):
                for probe in probes:
                    for _ in range(2):  # Compiles, and lets libraries take their working memory.
                        self._rewind()
                        for last in parts:
                            self._step(probe, last)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # The graphs take as much again from a pool of their own, which they share.
            pool = torch.cuda.graph_pool_handle()
            for probe in levels:
                for last in parts:
                    graph = torch.cuda.CUDAGraph()
                    # Threads of the communication library go on meanwhile.
                    with torch.cuda.graph(graph, pool=pool, stream=self._ahead, capture_error_mode="thread_local"):
                        self._step(probe, last)
                    self._graphs[probe, last] = graph
                self._optimizer.settle()
        finally:
            self._live.fill_(True)
            self._clear()
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)

    def _capture_missing(self, probes: Sequence[ProbeLevel]) -> None:
        missing = {probe for probe in probes if (probe, True) not in self._graphs}
        if not missing:
            return
        try:
            self._capture_step(missing)
        except (RuntimeError, NotImplementedError) as error:
            warnings.warn(f"step not captured, running it eagerly: {str(error).splitlines()[0]}", stacklevel=3)
            self._capture = False
            self._graphs.clear()

    def _rewind(self) -> None:
        self._position.zero_()
        self._window.zero_()

    def run(self, batches_RxBxT: NDArray[np.integer], lrs: Sequence[float], probes: Sequence[ProbeLevel]) -> Interval:
        """Train ``len(lrs)`` steps, at most ``report_every``, and fetch their statistics in one copy.

        Args:
            batches_RxBxT: token ids, T + 1 of them in a row: inputs and targets. Of several ranks each takes its rows.
            lrs: learning rate of each step.
            probes: what to measure at each step.
        """
        n = len(lrs)
        assert n == len(probes) == len(batches_RxBxT)
        if self._ranks is not None:
            batches_RxBxT = batches_RxBxT[:, self._ranks.share(batches_RxBxT.shape[1])]
        windows = torch.from_numpy(batches_RxBxT.astype(np.int32)).view(n * self._micros, -1, batches_RxBxT.shape[-1])
        self._windows_RMxBxT[: len(windows)].copy_(windows)
        if self._orders_RMx2xM is not None:
            tokens_RMxM = self._windows_RMxBxT[: len(windows), :, :-1].flatten(1)
            self._orders_RMx2xM[: len(windows)].copy_(gpu_embedding.in_order(tokens_RMxM))
        self._lrs_R[:n].copy_(torch.tensor(lrs))
        if self._capture:
            self._capture_missing(probes)
        self._moments_2xRxNxP.fill_(torch.nan)
        self._rewind()
        for probe in probes:
            for micro in range(self._micros):
                last = micro == self._micros - 1
                if self._capture:
                    self._graphs[probe, last].replay()
                else:
                    self._step(probe, last)
        # Roots and quotients are taken on the host, where they cost the step no kernels.
        sums, maxima = self._moments_2xRxNxP[:, :n].cpu()
        layers = self.model.statistics(sums, maxima, self.key.train.batch_size, self.key.shape.seq_len)
        return Interval(self._scalars_RxS[:n].cpu().numpy().copy(), layers.numpy())

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
