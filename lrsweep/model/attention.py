"""Causal self-attention, assembled once from a scheme's row.

Legend: B batch, T sequence, D model width, H heads, K head width, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape
from lrsweep.model.linear import LINEARS
from lrsweep.model.norms import NORMS, FullWidth
from lrsweep.probes import at_least_fp32, causal_logit_stats, causal_rms, products
from lrsweep.schemes import NormScope, Scheme

ROPE_BASE = 10_000.0


Measure = Callable[[], tuple[Tensor, ...]]


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

    stats: tuple[str, ...] = ("logit_max", "logit_rms")

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> tuple[Tensor, Measure]:
        """The mixed values, and a function that measures the logits: the values of :attr:`stats`."""
        a_BxHxTxK = F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, is_causal=True, scale=self.scale)
        return a_BxHxTxK, partial(causal_logit_stats, q_BxHxTxK, k_BxHxTxK, scale=self.scale)

    def logits(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor) -> Tensor:
        """The logits in memory, for scores that the fused kernel cannot do."""
        return products(q_BxHxTxK, k_BxHxTxK) * self.scale


def causal_softmax(logits_BxHxTxT: Tensor) -> Tensor:
    """softmax over j ≤ i; exactly 0 above the diagonal."""
    above = torch.ones(logits_BxHxTxT.shape[-2:], dtype=torch.bool, device=logits_BxHxTxT.device).triu_(1)
    return logits_BxHxTxT.masked_fill(above, -torch.inf).softmax(dim=-1)


class CappedScore(PlainScore):
    """softmax(c·tanh(scale·q·k/c)) v."""

    stats = ("logit_max", "logit_rms", "logit_max_capped", "logit_rms_capped")

    def __init__(self, scale: float, cap: float) -> None:
        super().__init__(scale)
        self.cap = cap

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> tuple[Tensor, Measure]:
        tanh_BxHxTxT = torch.tanh(self.logits(q_BxHxTxK, k_BxHxTxK) / self.cap)
        p_BxHxTxT = causal_softmax(self.cap * tanh_BxHxTxT)

        def measure() -> tuple[Tensor, ...]:
            largest, rms = causal_logit_stats(q_BxHxTxK, k_BxHxTxK, scale=self.scale)
            return largest, rms, self.cap * torch.tanh(largest / self.cap), self.cap * causal_rms(tanh_BxHxTxT)

        return p_BxHxTxT.type_as(v_BxHxTxK) @ v_BxHxTxK, measure


class ClippedScore(PlainScore):
    """clip((ζ−γ)·softmax(scale·q·k) + γ, 0, 1) v over the causal pairs (Bondarenko et al., 2306.12929, Eq. 4)."""

    def __init__(self, scale: float, zeta: float, gamma: float) -> None:
        super().__init__(scale)
        self.zeta, self.gamma = zeta, gamma

    def forward(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> tuple[Tensor, Measure]:
        p_BxHxTxT = causal_softmax(self.logits(q_BxHxTxK, k_BxHxTxK))
        p_BxHxTxT = ((self.zeta - self.gamma) * p_BxHxTxT + self.gamma).clamp(0, 1)
        measure = partial(causal_logit_stats, q_BxHxTxK, k_BxHxTxK, scale=self.scale)
        return p_BxHxTxT.type_as(v_BxHxTxK) @ v_BxHxTxK, measure


def build_score(scheme: Scheme, shape: ModelShape) -> PlainScore:
    """The score of a row."""
    scale = scheme.logit_scale / shape.d_head**0.5
    if scheme.logit_cap is not None:
        return CappedScore(scale, scheme.logit_cap)
    if scheme.prob_clip is not None:
        return ClippedScore(scale, *scheme.prob_clip)
    return PlainScore(scale)


class Attention(nn.Module):
    """QKV → norms → RoPE → score → Proj. QKV is one matrix."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        linear, norm = LINEARS[scheme.linear], NORMS[body]

        def norm_of(scope: NormScope) -> nn.Module:
            if scope == "none":
                return nn.Identity()
            return norm(shape.d_head) if scope == "head" else FullWidth(norm(shape.d_model))

        self.heads = shape.n_heads
        self.qkv = linear(shape.d_model, 3 * shape.d_model)
        self.q_norm, self.k_norm = norm_of(scheme.qk_norm), norm_of(scheme.qk_norm)
        self.v_norm = norm_of(scheme.v_norm)
        self.score = build_score(scheme, shape)
        self.proj = linear(shape.d_model, shape.d_model)

    def forward(self, x_BxTxD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Measure]:
        """Output of Proj; for the probes, output of QKV and a function that measures the logits."""
        qkv_BxTx3D = self.qkv(x_BxTxD)
        q, k, v = qkv_BxTx3D.unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q_BxHxTxK = rotate(self.q_norm(q), cos, sin).transpose(1, 2)
        k_BxHxTxK = rotate(self.k_norm(k), cos, sin).transpose(1, 2)
        a_BxHxTxK, measure = self.score(q_BxHxTxK, k_BxHxTxK, self.v_norm(v).transpose(1, 2))
        return self.proj(a_BxHxTxK.transpose(1, 2).flatten(-2)), qkv_BxTx3D, measure
