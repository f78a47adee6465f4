"""Causal self-attention, assembled once from a scheme's row.

Legend: B batch, T sequence, D model width, H heads, K head width, R rows of the T × T matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrsweep.config import Body, ModelShape
from lrsweep.model import capped, gpu_heads
from lrsweep.model.geometry import factors
from lrsweep.model.linear import LINEARS
from lrsweep.model.norms import (
    EPS,
    DynamicTanh,
    FullWidth,
    Gain,
    LayerNorm,
    Norm,
    RMSNorm,
    Unit,
    in_turn,
    norm_of,
    scale,
)
from lrsweep.probes import at_least_fp32, products, token_squares
from lrsweep.schemes import NormScope, QKNorm, Scheme

ROPE_BASE = 10_000.0
ROWS = 512
"""Queries whose logits are in memory at a time, where a score needs them there."""
MUP_BASE_HEAD = 32
"""Head width at which attention scaled by 1/d_h equals attention scaled by 1/√d_h."""


class QKV(NamedTuple):
    """What there is to measure in attention before Proj."""

    squares: tuple[Tensor, ...]
    """Squared L2 norms (B, T, G) of heads, groups of channels, or all of what QKV gives; empty where not measured."""
    q_BxHxTxK: Tensor
    """Queries as the score takes them."""
    k_BxHxTxK: Tensor
    """Keys as the score takes them."""


def rope_tables(seq_len: int, d_head: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (T, 1, K/2), for :func:`rotate` (Su et al., 2104.09864)."""
    frequency = ROPE_BASE ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)[:, None, :]
    return angle.cos().float(), angle.sin().float()


def rotate(x_BxTxHxK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding with the head's first half paired with its second, as Llama does."""
    a, b = at_least_fp32(x_BxTxHxK).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x_BxTxHxK)


class PlainScore(nn.Module):
    """softmax(scale·q·k) v, through the fused kernel."""

    cap: float | None = None

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        """The mixed values."""
        return F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, is_causal=True, scale=self.scale)

    def prepare(self, seq: int, device: torch.device) -> None:
        """Make ready for being compiled for sequences of this length on ``device``."""

    def logits(self, q_BxHxRxK: Tensor, k_BxHxTxK: Tensor) -> Tensor:
        """The logits in memory, for scores that the fused kernel cannot do."""
        return products(q_BxHxRxK, k_BxHxTxK) * self.scale


def causal_softmax(logits_BxHxRxT: Tensor) -> Tensor:
    """softmax over the keys up to each query, the queries being the last R of T; exactly 0 beyond."""
    rows, seq = logits_BxHxRxT.shape[-2:]
    above = torch.ones(rows, seq, dtype=torch.bool, device=logits_BxHxRxT.device).triu_(1 + seq - rows)
    return logits_BxHxRxT.masked_fill(above, -torch.inf).softmax(dim=-1)


Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, H, R, K), the last R of the T that keys and values have, to mixed values (B, H, R, K)."""


def by_rows(mix: Mix, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
    """``mix`` with no more than :data:`ROWS` queries' logits in memory, in the backward too, which computes them again.

    Up to that length, all at once and once only.
    """
    seq = q_BxHxTxK.shape[-2]
    if seq <= ROWS:
        return mix(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK)
    parts = []
    for start in range(0, seq, ROWS):
        stop = min(start + ROWS, seq)
        rows = q_BxHxTxK[:, :, start:stop], k_BxHxTxK[:, :, :stop], v_BxHxTxK[:, :, :stop]
        parts.append(checkpoint(mix, *rows, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, dim=-2)


class CappedScore(PlainScore):
    """softmax(c·tanh(scale·q·k/c)) v: fused in what is compiled for a GPU, with the logits in memory elsewhere."""

    def __init__(self, scale: float, cap: float) -> None:
        super().__init__(scale)
        self.cap: float = cap

    def prepare(self, seq: int, device: torch.device) -> None:
        """Make ready for being compiled for sequences of this length on ``device``."""
        if device.type == "cuda":
            capped.prepare(seq, device)

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        """The mixed values."""
        if capped.serves(q_BxHxTxK):
            return capped.capped_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, self.scale, self.cap)
        return by_rows(self._mix, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK)

    def _mix(self, q_BxHxRxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        tanh_BxHxRxT = torch.tanh(self.logits(q_BxHxRxK, k_BxHxTxK) / self.cap)
        return causal_softmax(self.cap * tanh_BxHxRxT).type_as(v_BxHxTxK) @ v_BxHxTxK


class ClippedScore(PlainScore):
    """clip((ζ−γ)·softmax(scale·q·k) + γ, 0, 1) v over the causal pairs (Bondarenko et al., 2306.12929, Eq. 4)."""

    def __init__(self, scale: float, zeta: float, gamma: float) -> None:
        super().__init__(scale)
        self.zeta, self.gamma = zeta, gamma

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        """The mixed values."""
        return by_rows(self._mix, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK)

    def _mix(self, q_BxHxRxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        p_BxHxRxT = causal_softmax(self.logits(q_BxHxRxK, k_BxHxTxK))
        p_BxHxRxT = ((self.zeta - self.gamma) * p_BxHxRxT + self.gamma).clamp(0, 1)
        return p_BxHxRxT.type_as(v_BxHxTxK) @ v_BxHxTxK


def build_score(scheme: Scheme, shape: ModelShape) -> PlainScore:
    """The score of a row."""
    if scheme.qk_norm in ("unit", "unit_gain"):
        scale = shape.d_head**0.5
    elif scheme.mup_base is not None:
        scale = MUP_BASE_HEAD**0.5 / shape.d_head
    else:
        scale = shape.d_head**-0.5
    scale *= scheme.logit_scale
    if scheme.logit_cap is not None:
        return CappedScore(scale, scheme.logit_cap)
    if scheme.prob_clip is not None:
        return ClippedScore(scale, *scheme.prob_clip)
    return PlainScore(scale)


class Attention(nn.Module):
    """QKV → norms → RoPE → unit length → score → Proj; what the row lacks is the identity. QKV is one matrix."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        linear, constant = LINEARS[scheme.linear], factors(scheme, body, shape)

        def norm(scope: NormScope | QKNorm) -> nn.Module:
            if scope == "head":
                return norm_of(scheme, body, shape.d_head)
            return FullWidth(norm_of(scheme, body, shape.d_model)) if scope == "full" else nn.Identity()

        self.heads = shape.n_heads
        self.qkv = linear(shape.d_model, 3 * shape.d_model)
        self.q_norm, self.k_norm = norm(scheme.qk_norm), norm(scheme.qk_norm)
        self.by_kernel: bool = isinstance(self.q_norm, nn.Identity | LayerNorm | RMSNorm)
        """Whether a GPU has one kernel for what stands between QKV and RoPE: no norm, or one over each head."""
        self.v_norm = in_turn(norm(scheme.v_norm), scale(constant.v))
        self.unit: nn.Module = Unit() if scheme.qk_norm in ("unit", "unit_gain") else nn.Identity()
        self.qk_gain: nn.Module = nn.Identity()
        if scheme.qk_norm == "unit_gain":
            self.qk_gain = FullWidth(Gain(shape.d_model, first=1.0, stored=shape.d_model**-0.5))
        self.score = build_score(scheme, shape)
        self.proj = linear(shape.d_model, shape.d_model)
        self.qk_clip = scheme.qk_clip

    def forward(self, x_BxTxD: Tensor, cos: Tensor, sin: Tensor, *, measured: bool = False) -> tuple[Tensor, QKV]:
        """Output of Proj, and what there is to measure before it."""
        qkv_BxTx3D: Tensor = self.qkv(x_BxTxD)
        squares: tuple[Tensor, ...] = ()
        if self.by_kernel and gpu_heads.serves(qkv_BxTx3D):
            gains, centred = self.head_norms()
            turned_q, turned_k, v, of_token = gpu_heads.heads_of(
                qkv_BxTx3D, gains, cos, sin, heads=self.heads, centred=centred, eps=EPS, measured=measured
            )
            squares = (of_token,) if measured else ()
        else:
            q, k, v = qkv_BxTx3D.view(*qkv_BxTx3D.shape[:-1], 3, self.heads, -1).unbind(-3)
            turned_q, turned_k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
            if measured:
                # A rotation keeps lengths, and what it gives is in registers where it has been computed.
                parts = *((turned_q, turned_k) if isinstance(self.q_norm, nn.Identity) else (q, k)), v.flatten(-2)
                squares = tuple(token_squares(part) for part in parts)
        q_BxHxTxK = self.qk_gain(self.unit(turned_q)).transpose(1, 2)
        k_BxHxTxK = self.qk_gain(self.unit(turned_k)).transpose(1, 2)
        a_BxHxTxK = self.score(q_BxHxTxK, k_BxHxTxK, self.v_norm(v).transpose(1, 2))
        return self.proj(a_BxHxTxK.transpose(1, 2).flatten(-2)), QKV(squares, q_BxHxTxK, k_BxHxTxK)

    def head_norms(self) -> tuple[tuple[Tensor, Tensor] | None, bool]:
        """Gains of the norms over each head of queries and of keys, and whether those subtract the mean.

        None, and False, where heads are not normalized.
        """
        if isinstance(self.q_norm, LayerNorm | RMSNorm) and isinstance(self.k_norm, LayerNorm | RMSNorm):
            return (self.q_norm.gain, self.k_norm.gain), self.q_norm.centred
        return None, False

    @torch.no_grad()
    def clip_heads(self, largest_H: Tensor, apply: Tensor) -> None:
        """Scale q and k of each head whose largest logit S of the step passed τ, so that it becomes τ.

        Each of the two takes √(τ/S): on the last thing that sets its scale, the weights or else a gain. Heads that
        share a gain take the smallest factor. Does nothing where ``apply``, a boolean scalar on the device, is False,
        nor for an S that is not finite.
        """
        assert self.qk_clip is not None
        clip_H = apply & (largest_H > self.qk_clip) & largest_H.isfinite()
        root_H = torch.where(clip_H, self.qk_clip / largest_H, 1.0).sqrt()
        for sets_scale in self._qk_scales():
            if sets_scale.shape[0] == self.heads:
                sets_scale.mul_(root_H.view(-1, *[1] * (sets_scale.ndim - 1)))
            else:
                sets_scale.mul_(root_H.amin())

    def _qk_scales(self) -> list[Tensor]:
        """What sets the scale of q and k, last: views of parameters, (H, ...) or, if heads share it, (1, K)."""
        if isinstance(self.qk_gain, FullWidth):
            gain = self.qk_gain.norm
            assert isinstance(gain, Gain)
            return [gain.value.view(self.heads, -1)]
        if isinstance(self.unit, Unit):
            return []  # |logit| ≤ √d_h, and nothing sets a scale
        if isinstance(self.q_norm, nn.Identity):
            return list(self.qkv.weight.view(3, self.heads, -1)[:2])
        scales: list[Tensor] = []
        for slot in (self.q_norm, self.k_norm):
            norm, groups = (slot.norm, self.heads) if isinstance(slot, FullWidth) else (slot, 1)
            assert isinstance(norm, Norm)
            vectors = (norm.gain, norm.bias) if isinstance(norm, DynamicTanh) else (norm.gain,)
            scales.extend(vector.view(groups, -1) for vector in vectors)
        return scales
