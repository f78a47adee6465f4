"""Optimizers as the step needs them: clipped, guarded, with learning rates on the device, and no word to the host.

Each takes its gradients from ``p.grad``, the clip as a divisor, and a flag that says whether the step is finite. Where
it is not, no weight moves and nothing non-finite enters a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lrsweep.config import TrainConfig
from lrsweep.model import GPT
from lrsweep.model.gpt import is_matrix
from lrsweep.train import gpu_adamw
from lrsweep.train.guard import Guard
from lrsweep.train.halves import Halves
from lrsweep.triton_kernels import run_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Parameters that are trained alike."""

    params: list[Tensor]
    """The parameters."""
    weight_decay: float
    """λ of this group."""
    lr_factor: float
    """LR of this group over that of the step."""
    hidden: bool
    """Whether these are the matrices inside the blocks."""


def keeps_halves(train: TrainConfig, lr: Tensor) -> bool:
    """Whether the optimizer that ``train`` asks for can keep bf16 copies of weights where ``lr`` is."""
    return train.optimizer == "adamw" and run_on(lr)


class Optimizer(Protocol):
    """What the step asks of an optimizer."""

    accounts: bool
    """Whether :meth:`step` says how far it has moved the weights."""

    def gradient_squares(self) -> Tensor:
        """Numbers, fp32, that add up to the squared L2 norm of all gradients at hand."""

    def step(self, guard: Guard) -> Tensor | None:
        """Update in place from gradients divided by the guard's divisor; leave weights alone unless it is finite.

        Returns (K, 2, Q), whose K and Q add up to ‖Δθ‖² and ‖θ‖² before the update, where it ``accounts``.
        """

    def warm_up(self) -> None:
        """Compile kernels of its own, if it has some."""

    def settle(self) -> None:
        """Called once a step has been captured, before it is replayed."""

    def states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """(parameter, its state tensors) for all that have some by now."""


def groups_of(model: GPT, train: TrainConfig, weight_decay: float) -> list[Group]:
    """Matrices inside the blocks; embedding and head; gains and biases, which take no decay unless ``decay_on`` says.

    Under ``mup_base`` the first learn at LR·base/d (Yang et al., 2203.03466, Table 8) with λ·d/base, so that the
    product, which is what decays a weight, stays. Muon's updates, of full rank, have a spectral norm that grows as √d
    and not as d, and √(base/d) takes that back (Yang et al., 2310.17813).
    """
    hidden: list[Tensor] = [p for p in model.blocks.parameters() if is_matrix(p)]
    others: list[Tensor] = [model.embedding, model.head.weight]
    vectors: list[Tensor] = [p for p in model.parameters() if not is_matrix(p)]
    base = model.scheme.mup_base
    ratio = 1.0 if base is None else (model.shape.d_model / base) ** (0.5 if train.optimizer == "muon" else 1.0)
    return [
        Group(params=hidden, weight_decay=weight_decay * ratio, lr_factor=1 / ratio, hidden=True),
        Group(params=others, weight_decay=weight_decay, lr_factor=1.0, hidden=False),
        Group(
            params=vectors,
            weight_decay=weight_decay if train.decay_on == "all" else 0.0,
            lr_factor=1.0,
            hidden=False,
        ),
    ]


class _Rates:
    """The learning rate of each group as a device tensor that follows the step's."""

    def __init__(self, lr: Tensor, groups: Sequence[Group]) -> None:
        self._lr = lr
        self._scaled = {g.lr_factor: torch.zeros_like(lr) for g in groups if g.lr_factor != 1.0}

    def of(self, group: Group) -> Tensor:
        return self._scaled.get(group.lr_factor, self._lr)

    def follow(self) -> None:
        for factor, scaled in self._scaled.items():
            torch.mul(self._lr, factor, out=scaled)


def adamw(groups: Sequence[Group], train: TrainConfig, lr: Tensor, halves: Halves) -> Optimizer:
    """AdamW (Loshchilov & Hutter, 1711.05101); on a GPU in one kernel that knows how far the weights have moved."""
    groups = [g for g in groups if g.params]
    return _GPUAdamW(groups, train, lr, halves) if run_on(lr) else _TorchAdamW(groups, train, lr, halves)


class _Plain:
    """What optimizers have in common that keep no account of their own and no bf16 copies."""

    accounts = False

    def __init__(self, groups: Sequence[Group], halves: Halves) -> None:
        assert not halves
        self._parameters = [p for g in groups for p in g.params]

    def gradient_squares(self) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return norm.square()

    def warm_up(self) -> None:
        pass

    def settle(self) -> None:
        pass


class _GPUAdamW:
    """AdamW by :mod:`lrsweep.train.gpu_adamw`."""

    accounts = True

    def __init__(self, groups: Sequence[Group], train: TrainConfig, lr: Tensor, halves: Halves) -> None:
        self._steps = torch.zeros_like(lr)
        self._slots = [
            gpu_adamw.Slot(weight=p, first=torch.zeros_like(p), second=torch.zeros_like(p), group=i, half=halves.get(p))
            for i, g in enumerate(groups)
            for p in g.params
        ]
        self._fused = gpu_adamw.FusedAdamW(
            self._slots,
            lr=lr,
            factors=[g.lr_factor for g in groups],
            decays=[g.weight_decay for g in groups],
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            steps=self._steps,
        )

    @torch.no_grad()
    def gradient_squares(self) -> Tensor:
        return self._fused.gradient_squares()

    @torch.no_grad()
    def step(self, guard: Guard) -> Tensor:
        self._steps += guard.finite
        return self._fused.step(guard.finite, guard.divisor)

    def warm_up(self) -> None:
        self._fused.warm_up()

    def settle(self) -> None:
        self._fused.settle()

    def states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for slot in self._slots:
            yield slot.weight, {"exp_avg": slot.first, "exp_avg_sq": slot.second}
        yield self._steps, {"steps": self._steps}


class _TorchAdamW(_Plain):
    """torch's fused AdamW.

    Its kernel divides gradients by ``grad_scale`` and leaves everything untouched where ``found_inf`` is 1: clipping
    and the guard cost no pass over memory.
    """

    def __init__(self, groups: Sequence[Group], train: TrainConfig, lr: Tensor, halves: Halves) -> None:
        super().__init__(groups, halves)
        self._rates = _Rates(lr, groups)
        self._adamw = torch.optim.AdamW(
            [{"params": g.params, "weight_decay": g.weight_decay, "lr": self._rates.of(g)} for g in groups],
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            fused=True,
            capturable=lr.is_cuda,
        )
        self._adamw.grad_scale = torch.ones_like(lr)  # type: ignore[attr-defined]
        self._adamw.found_inf = torch.zeros_like(lr)  # type: ignore[attr-defined]

    def step(self, guard: Guard) -> None:
        self._rates.follow()
        self._adamw.found_inf.copy_(~guard.finite)  # type: ignore[attr-defined]
        self._adamw.grad_scale.copy_(guard.divisor)  # type: ignore[attr-defined]
        self._adamw.step()

    def states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        yield from self._adamw.state.items()


class StableAdamW(_Plain):
    """AdamW whose LR of each tensor is divided by max(1, RMS) (Wortsman et al., 2304.13013, Algorithm 2).

    RMS² is the mean of g²/max(v, ε²), v being the second moment with this step's gradient in it and without its bias;
    an LR so divided also scales the decay.
    """

    def __init__(self, groups: Sequence[Group], train: TrainConfig, lr: Tensor, halves: Halves) -> None:
        super().__init__(groups, halves)
        self._groups = [g for g in groups if g.params]
        self._rates = _Rates(lr, groups)
        self._betas, self._eps = (train.beta1, train.beta2), train.eps
        self._first = [[torch.zeros_like(p) for p in g.params] for g in self._groups]
        self._second = [[torch.zeros_like(p) for p in g.params] for g in self._groups]
        self._steps = torch.zeros_like(lr)

    @torch.no_grad()
    def step(self, guard: Guard) -> None:
        _, finite, divisor = guard
        self._rates.follow()
        moves = finite.to(self._steps.dtype)
        self._steps += moves
        # Debiasing folded into the decay rates, as the algorithm does: β(1 − β^(t−1))/(1 − β^t); 1, and so no change,
        # in a step that is not finite.
        keep_1, keep_2 = (
            torch.where(finite, beta * (1 - beta ** (self._steps - 1)) / (1 - beta**self._steps), 1.0)
            for beta in self._betas
        )
        for group, firsts, seconds in zip(self._groups, self._first, self._second, strict=True):
            lr = self._rates.of(group) * moves
            for p, first, second in zip(group.params, firsts, seconds, strict=True):
                assert p.grad is not None
                g = torch.where(finite, p.grad / divisor, 0.0)
                first.lerp_(g, 1 - keep_1)
                second.lerp_(g.square(), 1 - keep_2)
                rms = g.square().div_(second.clamp(min=self._eps**2)).mean().sqrt()
                tensor_lr = lr / rms.clamp(min=1.0)
                p.mul_(1 - tensor_lr * group.weight_decay)
                p.sub_(tensor_lr * first / (second.sqrt() + self._eps))

    def states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for group, firsts, seconds in zip(self._groups, self._first, self._second, strict=True):
            for p, first, second in zip(group.params, firsts, seconds, strict=True):
                yield p, {"first": first, "second": second}
        yield self._steps, {"steps": self._steps}


_QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b and c of one iteration X ← aX + (bA + cA²)X, A = XXᵀ; steep at 0, they keep singular values near 1."""


def orthogonalized(matrices_KxMxN: Tensor) -> Tensor:
    """UVᵀ of each matrix UΣVᵀ, nearly, by five quintic Newton-Schulz iterations (Jordan et al., 2024).

    They bring singular values above 0.002 of the Frobenius norm to between 0.68 and 1.21. All K at once, (K, M, N), in
    bf16 on a GPU and in fp32 elsewhere: without instructions for bf16 a CPU takes a hundred times as long.
    A matrix of zeros stays one; NaN and inf spread over their matrix.
    """
    tall = matrices_KxMxN.shape[1] > matrices_KxMxN.shape[2]
    x = matrices_KxMxN.mT if tall else matrices_KxMxN
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    a, b, c = _QUINTIC
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class _Alike(NamedTuple):
    """Matrices of one group and shape, K of M × N."""

    group: Group
    params: list[Tensor]
    momentum_KxMxN: Tensor


class Muon(_Plain):
    """Muon on the matrices inside the blocks (Liu et al., 2502.16982, section 2), AdamW on everything else.

    The algorithm of torch's Muon with ``match_rms_adamw``, momentum 0.95. That one takes its LR as a number of the
    host, which a captured step cannot change, goes from matrix to matrix, and multiplies in bf16 on any machine.
    """

    def __init__(self, groups: Sequence[Group], train: TrainConfig, lr: Tensor, halves: Halves) -> None:
        super().__init__(groups, halves)
        hidden = [g for g in groups if g.hidden and g.params]
        self._adamw = adamw([g for g in groups if not g.hidden], train, lr, {})
        self._rates = _Rates(lr, hidden)
        self._alike: list[_Alike] = []
        for group in hidden:
            for shape in dict.fromkeys(p.shape for p in group.params):
                params = [p for p in group.params if p.shape == shape]
                self._alike.append(_Alike(group, params, lr.new_zeros(len(params), *shape)))

    @torch.no_grad()
    def step(self, guard: Guard) -> None:
        _, finite, divisor = guard
        self._rates.follow()
        for group, params, momentum in self._alike:
            lr = self._rates.of(group) * finite
            g = torch.where(finite, torch.stack([p.grad for p in params]).div_(divisor), 0.0)  # type: ignore[misc]
            # Moved by no part of the way to 0, the momentum of a step that is not finite stays as it is, bit for bit.
            momentum.lerp_(g, 0.05 * finite)
            updates = orthogonalized(g.lerp_(momentum, 0.95))
            # The RMS of AdamW's update is about 0.2, that of an orthogonal matrix 1/√max(M, N).
            step = lr * (0.2 * max(momentum.shape[1:]) ** 0.5)
            for p, update in zip(params, updates.unbind(), strict=True):
                p.mul_(1 - lr * group.weight_decay)
                p.sub_(step * update)
        self._adamw.step(guard)

    def settle(self) -> None:
        self._adamw.settle()

    def states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for _, params, momenta in self._alike:
            for p, momentum in zip(params, momenta, strict=True):
                yield p, {"momentum": momentum}
        yield from self._adamw.states()


OPTIMIZERS: dict[str, Callable[[Sequence[Group], TrainConfig, Tensor, Halves], Optimizer]] = {
    "adamw": adamw,
    "stable_adamw": StableAdamW,
    "muon": Muon,
}
"""By the name in a :class:`~lrsweep.config.TrainConfig`, what builds an optimizer from groups, training, the step's
learning rate on the device, and the copies to keep."""
