"""One transformer block, assembled from a scheme's row at construction; ``forward`` knows no scheme.

Legend: B batch, T sequence, D model width, F MLP width, S sites, H heads, K head width.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape, mlp_width
from lrsweep.model import gpu_activation
from lrsweep.model.attention import Attention
from lrsweep.model.geometry import factors, gelu, mlp_gain
from lrsweep.model.linear import LINEARS, Linear, SigmaReparam
from lrsweep.model.norms import in_turn, norm_of, scale
from lrsweep.model.residual import RESIDUALS, Add, join, joins_by_kernel
from lrsweep.probes import token_squares
from lrsweep.probes.stats import n_groups
from lrsweep.schemes import Scheme


class ProbeLevel(enum.IntEnum):
    """How much a forward measures."""

    OFF = 0
    """Nothing."""
    NORMS = 1
    """Output norms; the statistics of the logits read NaN."""
    ALL = 2
    """Output norms and attention logits."""


SITES = ("qkv", "proj", "fc1", "fc2")
"""Linear layers whose own outputs are measured, before any norm that follows them."""


class Seen(NamedTuple):
    """What a block keeps of its activations for :mod:`lrsweep.model.moments` to measure; empty where not asked for."""

    squares: tuple[tuple[Tensor, ...], ...]
    """Of each of :data:`SITES`, in one part or more, squared L2 norms (B, T, G) of its heads, of groups of its
    channels, or of all of it. Those of FC2 are missing where the block leaves its output to the next.
    """
    left: tuple[Tensor, ...]
    """Those of FC2 of the block before, if that has left them."""
    logits: tuple[Tensor, ...]
    """Queries and keys (B, H, T, K) as the score takes them."""


class MLP(nn.Module):
    """FC2(activation(FC1(x))).

    Attributes:
        gated: whether FC1 gives two parts, one beside the other.
        plain: whether the activation takes what FC1 gives as it is.
    """

    gated: bool
    plain: bool
    fc1: Linear | SigmaReparam
    fc2: Linear | SigmaReparam

    def activate(self, *parts_BxTxF: Tensor) -> Tensor:
        """What FC2 takes, from what FC1 gives."""
        raise NotImplementedError

    def forward(self, x_BxTxD: Tensor, *, measured: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output of FC2, and squares of FC1's if measured."""
        h_BxTxF = self.fc1(x_BxTxD)
        if self.plain and gpu_activation.serves(h_BxTxF):
            a_BxTxF, squares_BxTx1 = gpu_activation.activate(h_BxTxF, gated=self.gated, measured=measured)
            squares = (squares_BxTx1,) if measured else ()
        else:
            parts = h_BxTxF.chunk(2, dim=-1) if self.gated else (h_BxTxF,)
            a_BxTxF = self.activate(*parts)
            squares = (token_squares(*parts),) if measured else ()
        return self.fc2(a_BxTxF), squares


class GeluMLP(MLP):
    """FC2(gelu(FC1(x))), tanh form of gelu as in GPT-2."""

    gated = False

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        linear, constant = LINEARS[scheme.linear], factors(scheme, body, shape)
        d_model, hidden = shape.d_model, mlp_width(scheme, body, shape.d_model)
        norm = norm_of(scheme, body, hidden) if scheme.fc1_norm else nn.Identity()
        self.fc1 = linear(d_model, hidden)
        self.fc1_norm = in_turn(norm, mlp_gain(scheme, constant.fc1, hidden, d_model))
        self.fc2 = linear(hidden, d_model)
        self.plain = isinstance(self.fc1_norm, nn.Identity)

    def activate(self, *parts_BxTxF: Tensor) -> Tensor:
        """Gelu."""
        (h_BxTxF,) = parts_BxTxF
        return gelu(self.fc1_norm(h_BxTxF))


class SwigluMLP(MLP):
    """FC2(silu(gate) · up), gate and up the halves of FC1 (Shazeer, 2002.05202)."""

    gated = True

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        linear, constant = LINEARS[scheme.linear], factors(scheme, body, shape)
        d_model, hidden = shape.d_model, mlp_width(scheme, body, shape.d_model)

        def norm() -> nn.Module:
            return norm_of(scheme, body, hidden) if scheme.fc1_norm else nn.Identity()

        self.fc1 = linear(d_model, 2 * hidden)
        self.gate_norm = in_turn(norm(), mlp_gain(scheme, constant.fc1, hidden, d_model))
        self.up_norm = in_turn(norm(), mlp_gain(scheme, constant.up, hidden, d_model))
        self.fc2 = linear(hidden, d_model)
        self.plain = isinstance(self.gate_norm, nn.Identity) and isinstance(self.up_norm, nn.Identity)

    def activate(self, *parts_BxTxF: Tensor) -> Tensor:
        """Silu of one part times the other."""
        gate, up = parts_BxTxF
        a_BxTxF: Tensor = F.silu(self.gate_norm(gate)) * self.up_norm(up)
        return a_BxTxF


MLPS: dict[str, type[GeluMLP] | type[SwigluMLP]] = {"gpt": GeluMLP, "llama": SwigluMLP}
"""The MLP of each body."""


class Block(nn.Module):
    """Attention and MLP, each: norm → sub-layer → norm → residual, where a norm the row lacks is the identity."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()

        def norm_if(present: bool) -> nn.Module:
            return norm_of(scheme, body, shape.d_model) if present else nn.Identity()

        residual, constant = RESIDUALS[scheme.residual], factors(scheme, body, shape)
        self.attn_norm = norm_if(scheme.attn_pre_norm)
        self.attn = Attention(scheme, body, shape)
        self.proj_norm = in_turn(norm_if(scheme.proj_norm), scale(constant.proj))
        self.attn_residual = residual(scheme, body, shape)
        self.mlp_stream_norm = norm_if(scheme.mlp_stream_norm)
        self.mlp_norm = norm_if(scheme.mlp_pre_norm)
        self.mlp = MLPS[body](scheme, body, shape)
        self.fc2_norm = in_turn(norm_if(scheme.fc2_norm), scale(constant.fc2))
        self.mlp_residual = residual(scheme, body, shape)
        self.leaves_late: bool = isinstance(self.mlp_residual, Add)
        """Whether the block leaves it to the next to add its last output, where one kernel then adds and normalizes."""
        self._proj_joins = isinstance(self.proj_norm, nn.Identity)
        self._fc2_joins = isinstance(self.fc2_norm, nn.Identity)
        """Whether what joins the stream is what Proj, or FC2, gives, and can be measured there."""

    def forward(
        self, x_BxTxD: Tensor, late_BxTxD: Tensor, cos: Tensor, sin: Tensor, probe: ProbeLevel
    ) -> tuple[Tensor, Tensor, Seen]:
        """The stream after the block, what is yet to be added to it, and what of the block ``probe`` wants measured.

        ``late_BxTxD`` is what is yet to be added to the stream before the block; nothing, if no block
        ``leaves_late``, and it is then handed on.
        """
        measured = probe != ProbeLevel.OFF
        x_BxTxD, normed_BxTxD, left = self.take_late(self.attn_norm, x_BxTxD, late_BxTxD, measured=measured)
        proj, qkv = self.attn(normed_BxTxD, cos, sin, measured=measured)
        x_BxTxD, normed_BxTxD, of_proj = self._take_attention(x_BxTxD, proj, measured=measured)
        fc2, of_fc1 = self.mlp(normed_BxTxD, measured=measured)
        if self.leaves_late:
            late_BxTxD = self.fc2_norm(fc2)
        else:
            x_BxTxD = self.mlp_residual(x_BxTxD, self.fc2_norm(fc2))
        squares: tuple[tuple[Tensor, ...], ...] = ()
        logits: tuple[Tensor, ...] = ()
        if measured:
            of_fc2 = () if self.leaves_late and self._fc2_joins else (token_squares(fc2),)
            squares = qkv.squares, of_proj, of_fc1, of_fc2
        if probe == ProbeLevel.ALL or (self.attn.qk_clip is not None and self.training):
            logits = qkv.q_BxHxTxK.detach(), qkv.k_BxHxTxK.detach()
        return x_BxTxD, late_BxTxD, Seen(squares, left, logits)

    def groups(self) -> list[list[int]]:
        """Groups that squares of each site have in each of its parts, where blocks are compiled for a GPU."""
        heads, hidden = self.attn.heads, self.mlp.fc2.weight.shape[1]
        wide = n_groups(self.mlp.fc2.weight.shape[0])
        by_kernels = (
            (self._proj_joins and joins_by_kernel(self.mlp_norm, self.attn_residual), wide),
            (self.mlp.plain, n_groups(hidden)),
            (self._fc2_joins and joins_by_kernel(self.attn_norm, self.mlp_residual), wide),
        )
        of_qkv = [1] if self.attn.by_kernel else [heads, heads, wide]
        return [of_qkv, *([1 if by_kernel else groups] for by_kernel, groups in by_kernels)]

    def take_late(
        self, norm: nn.Module, x_BxTxD: Tensor, late_BxTxD: Tensor, *, measured: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """What a block like this one has left is added to the stream.

        Returns:
            The stream, the stream normalized, and squares of what was added if FC2 is to be measured there.
        """
        if not self.leaves_late:
            return x_BxTxD, norm(x_BxTxD), ()
        return join(self.mlp_residual, norm, x_BxTxD, late_BxTxD, measured=measured and self._fc2_joins)

    def _take_attention(
        self, x_BxTxD: Tensor, proj_BxTxD: Tensor, *, measured: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The stream with attention's output, the stream normalized for the MLP, and squares of Proj's if measured."""
        f_BxTxD = self.proj_norm(proj_BxTxD)
        squares: tuple[Tensor, ...] = ()
        if isinstance(self.mlp_stream_norm, nn.Identity):
            x_BxTxD, normed_BxTxD, squares = join(
                self.attn_residual, self.mlp_norm, x_BxTxD, f_BxTxD, measured=measured and self._proj_joins
            )
        else:
            x_BxTxD = self.mlp_stream_norm(self.attn_residual(x_BxTxD, f_BxTxD))
            normed_BxTxD = self.mlp_norm(x_BxTxD)
        if measured and not squares:
            squares = (token_squares(proj_BxTxD),)
        return x_BxTxD, normed_BxTxD, squares
