"""A GPT built from a scheme's row and a body.

Legend: B batch, T sequence, D model width, V vocabulary, N layers, S statistics a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape
from lrsweep.model import gpu_embedding, gpu_loss
from lrsweep.model.attention import rope_tables
from lrsweep.model.block import Block, ProbeLevel, Seen, SwigluMLP
from lrsweep.model.geometry import project, row_axis
from lrsweep.model.init import STDS, Site, draw, sites
from lrsweep.model.linear import LINEARS
from lrsweep.model.moments import LogitMoments, Moments, columns, logit_moments, site_moments, stat_names, statistics
from lrsweep.model.norms import Gain, in_turn, norm_of, scale
from lrsweep.probes import at_least_fp32
from lrsweep.schemes import Scheme

DETACH = 0.1
"""g of e ← g·e + (1−g)·stop_gradient(e) (Zeng et al., 2210.02414)."""


class Detach(nn.Module):
    """g·e + (1−g)·stop_gradient(e): the value unchanged, the gradient times g."""

    def forward(self, e_BxTxD: Tensor) -> Tensor:
        return e_BxTxD.detach().lerp(e_BxTxD, DETACH)


class Cap(nn.Module):
    """c·tanh(x/c), in fp32."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(at_least_fp32(x) / self.cap)


class GPT(nn.Module):
    """Embedding → its path → blocks → final norm → head → its factors.

    ``blocks`` hold the transformer; what they keep for the statistics comes back with the output.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.scheme, self.body, self.shape = scheme, body, shape
        d_model = shape.d_model
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, d_model))
        embed_paths: dict[str, Callable[[], nn.Module]] = {
            "plain": nn.Identity,
            "scaled": lambda: scale((scheme.mup_base or d_model) ** 0.5),
            "norm": lambda: norm_of(scheme, body, d_model),
            "detach": Detach,
        }
        self.embed = embed_paths[scheme.embed]()
        self.blocks = nn.ModuleList(Block(scheme, body, shape) for _ in range(shape.n_layers))
        self.final_norm = norm_of(scheme, body, d_model) if scheme.final_norm else nn.Identity()
        self.head = LINEARS[scheme.linear](d_model, shape.vocab_size)
        self.head_out = in_turn(
            Gain(shape.vocab_size, first=1.0, stored=d_model**-0.5) if scheme.head_gain else nn.Identity(),
            scale(1.0 if scheme.mup_base is None else scheme.mup_base / d_model),
            nn.Identity() if scheme.final_cap is None else Cap(scheme.final_cap),
        )
        self.plain_logits: bool = isinstance(self.head_out, nn.Identity)
        """Whether the head's products are the logits, with no factor or cap."""
        cos, sin = rope_tables(shape.seq_len, shape.d_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        block = self.blocks[0]
        assert isinstance(block, Block)
        self.score = block.attn.score
        self.stat_names = stat_names(self.score.cap)

    def hidden(
        self, tokens_BxT: Tensor, probe: ProbeLevel, order_2xM: Tensor | None = None
    ) -> tuple[Tensor, list[Seen]]:
        """The stream (B, T, D) as the head takes it, normalized, and what each block keeps for :meth:`moments`.

        ``order_2xM`` is :func:`lrsweep.model.gpu_embedding.in_order` of the tokens, if that is at hand.
        """
        seq = tokens_BxT.shape[1]
        cos, sin = self.cos[:seq], self.sin[:seq]
        if order_2xM is None:
            rows_BxTxD = F.embedding(tokens_BxT, self.embedding)
        else:
            rows_BxTxD = gpu_embedding.embedding(tokens_BxT, self.embedding, order_2xM)
        x_BxTxD = self.embed(rows_BxTxD)
        late_BxTxD, kept = self._nothing_late(x_BxTxD), []
        for block in self.blocks:
            x_BxTxD, late_BxTxD, seen = block(x_BxTxD, late_BxTxD, cos, sin, probe)
            kept.append(seen)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        measured = probe != ProbeLevel.OFF
        _, normed_BxTxD, left = last.take_late(self.final_norm, x_BxTxD, late_BxTxD, measured=measured)
        lefts = [*(seen.left for seen in kept[1:]), left]
        for i, left in enumerate(lefts):
            if left:
                kept[i] = kept[i]._replace(squares=(*kept[i].squares[:-1], left))
        return normed_BxTxD, kept

    def _nothing_late(self, x_BxTxD: Tensor) -> Tensor:
        """What comes late before the first block, of the type of a sub-layer's output: so blocks stay one graph."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        if not first.leaves_late:
            return x_BxTxD.new_empty(0)
        device, dtype = x_BxTxD.device.type, x_BxTxD.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        return torch.zeros_like(x_BxTxD, dtype=dtype, requires_grad=torch.is_grad_enabled())

    def logit_moments(self, seen: Sequence[Seen]) -> LogitMoments | None:
        """Of the attention logits of some layers, in order, or of all; None if their blocks kept none."""
        return logit_moments(seen, self.score.scale, self.score.cap)

    def statistics(self, columns_2xNxP: Tensor, batch: int, seq: int) -> Tensor:
        """Statistics (…, N, S) of ``batch`` sequences of ``seq`` tokens, columns as ``stat_names``.

        ``columns_2xNxP`` is :func:`lrsweep.model.moments.columns` of a forward, or (2, …, N, P) of many.
        """
        return statistics(columns_2xNxP, cap=self.score.cap, batch=batch, heads=self.shape.n_heads, seq=seq)

    def forward(self, tokens_BxT: Tensor, probe: ProbeLevel = ProbeLevel.OFF) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the statistics (N, S)."""
        x_BxTxD, seen = self.hidden(tokens_BxT, probe)
        logits_BxTxV = self.logits(x_BxTxD)
        if probe == ProbeLevel.OFF:
            return logits_BxTxV, x_BxTxD.new_empty(len(seen), 0)
        moments = Moments(site_moments(seen), self.logit_moments(seen)).asked(probe)
        batch, seq = tokens_BxT.shape
        return logits_BxTxV, self.statistics(columns(moments, self.score.cap), batch, seq)

    def logits(self, x_BxTxD: Tensor, head_VxD: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of what :meth:`hidden` gives; ``head_VxD`` is the head's matrix, if it is at hand."""
        head_VxD = self.head.matrix() if head_VxD is None else head_VxD
        logits_BxTxV: Tensor = self.head_out(F.linear(x_BxTxD, head_VxD))
        return logits_BxTxV

    def loss_sums(
        self,
        x_BxTxD: Tensor,
        head_VxD: Tensor,
        targets_BxT: Tensor,
        z_loss: float = 0.0,
        factor: float = 1.0,
        beside: gpu_loss.Beside | None = None,
    ) -> Tensor:
        """Sums (3) over tokens, of what :meth:`hidden` gives: what training minimizes, the loss, and log Z.

        Each times ``factor``. The first is the loss + ``z_loss``·log²Z; no gradient flows through the other two. Sums,
        so that it can go over a part of the tokens. On a GPU, logits that come out of the head as they are have kernels
        of their own, which leave room for what runs ``beside``.
        """
        logits_BxTxV = self.logits(x_BxTxD, head_VxD)
        if self.plain_logits and gpu_loss.serves(logits_BxTxV):
            return gpu_loss.loss_sums(logits_BxTxV, targets_BxT, z_loss, factor, beside=beside)
        nll_BxT, log_z_BxT = next_token_losses(logits_BxTxV, targets_BxT)
        loss = nll_BxT.sum()
        objective = loss + z_loss * log_z_BxT.square().sum() if z_loss else loss
        return torch.stack([objective, loss.detach(), log_z_BxT.detach().sum()]) * factor

    @torch.no_grad()
    def constrain(self, apply: Tensor | None = None) -> None:
        """Bring weights back to where the row's geometry wants them, in place; nothing where it is free.

        Nor where ``apply``, a boolean scalar on the device, is False.
        """
        if self.scheme.geometry == "free":
            return
        for name, parameter in self.named_parameters():
            if is_matrix(parameter):
                project(parameter, row_axis(self.scheme, name), self.scheme.geometry, apply)

    def clip_heads(self, head_maxima_NxH: Tensor, apply: Tensor) -> None:
        """:meth:`Attention.clip_heads` on every layer; nothing where the row has no ``qk_clip``."""
        if self.scheme.qk_clip is not None:
            for block, largest_H in zip(self.blocks, head_maxima_NxH.unbind(), strict=True):
                assert isinstance(block, Block)
                block.attn.clip_heads(largest_H, apply)

    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(p.numel() for p in self.parameters())


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is an embedding or a linear layer's weight; gains and biases have one axis at most."""
    return parameter.ndim == 2


def next_token_losses(logits_BxTxV: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and log Z = logsumexp of the logits, of each token (B, T)."""
    logits_BxTxV = at_least_fp32(logits_BxTxV)
    log_z_BxT = logits_BxTxV.logsumexp(dim=-1)
    if torch.compiler.is_compiling():
        # A comparison goes into the kernels of logsumexp; a gather's backward is a matrix of zeros and a scatter.
        is_target = torch.arange(logits_BxTxV.shape[-1], device=targets_BxT.device) == targets_BxT[..., None]
        target_logit_BxT = torch.where(is_target, logits_BxTxV, 0.0).sum(dim=-1)
    else:
        target_logit_BxT = logits_BxTxV.gather(-1, targets_BxT[..., None])[..., 0]
    return log_z_BxT - target_logit_BxT, log_z_BxT


def next_token_loss(logits_BxTxV: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats per token, and log Z of each token (B, T)."""
    nll_BxT, log_z_BxT = next_token_losses(logits_BxTxV, targets_BxT)
    return nll_BxT.mean(), log_z_BxT


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """Give every parameter its initial value: matrices as :mod:`lrsweep.model.init` says, gains by their ``start``.

    Under ``mup_base`` a matrix of the blocks has the standard deviation that its init gives at the base width, divided
    by √(d/base); embedding and head have that of the base width.
    """
    scheme, shape = model.scheme, model.shape
    ratio = 1.0 if scheme.mup_base is None else shape.d_model / scheme.mup_base
    gated = isinstance(model.blocks[0].mlp, SwigluMLP)

    def fill(name: str, parameter: Tensor) -> None:
        cut = 3.0 if scheme.init == "simplegpt" and name == "head.weight" else None
        values = draw(name, parameter.shape, seed, cut=cut)
        parts = tuple(sites(name, parameter.shape, gated=gated, n_layers=shape.n_layers, d_model=shape.d_model))
        for rows, site in zip(values.chunk(len(parts)), parts, strict=True):
            rows *= _std(scheme, site, ratio)
        if scheme.init == "unit":
            project(values, row_axis(scheme, name), "sphere")
        with torch.no_grad():  # A thread has a gradient mode of its own.
            parameter.copy_(values)

    matrices = [(name, parameter) for name, parameter in model.named_parameters() if is_matrix(parameter)]
    if model.embedding.is_cuda:
        # Each has a stream of its own: drawn side by side, 780M numbers take a second and not six.
        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, *zip(*matrices, strict=True)))
    else:
        for name, parameter in matrices:
            fill(name, parameter)
    for module in model.modules():
        # After the matrices: the gain of σReparam depends on its weight.
        if callable(start := getattr(module, "start", None)):
            start()


def _std(scheme: Scheme, site: Site, ratio: float) -> float:
    in_block = site.kind not in ("embedding", "head")
    at_base = replace(
        site,
        n_in=site.n_in if site.kind == "embedding" else round(site.n_in / ratio),
        n_out=site.n_out if site.kind == "head" else round(site.n_out / ratio),
        d_model=round(site.d_model / ratio),
    )
    return STDS[scheme.init](at_base) / (ratio**0.5 if in_block else 1.0)
