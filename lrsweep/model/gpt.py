"""A GPT built from a scheme's row and a body.

Legend: B batch, T sequence, D model width, V vocabulary, N layers, S statistics a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape
from lrsweep.model.attention import Attention, rope_tables
from lrsweep.model.block import Block, Probe, SwigluMLP
from lrsweep.model.geometry import project, row_axis
from lrsweep.model.init import STDS, Site, draw, sites
from lrsweep.model.linear import LINEARS
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

    ``blocks`` hold the transformer; statistics of all layers come back with the output, computed in the graph.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.scheme, self.shape = scheme, shape
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
        cos, sin = rope_tables(shape.seq_len, shape.d_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        block = self.blocks[0]
        assert isinstance(block, Block)
        self.stat_names = block.stat_names

    def hidden(self, tokens_BxT: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
        """The stream (B, T, D) after the last block, and the statistics (N, S), columns as ``stat_names``."""
        seq = tokens_BxT.shape[1]
        cos, sin = self.cos[:seq], self.sin[:seq]
        x_BxTxD = self.embed(F.embedding(tokens_BxT, self.embedding))
        stats = []
        for block in self.blocks:
            x_BxTxD, layer_stats = block(x_BxTxD, cos, sin, probe)
            stats.append(layer_stats)
        return x_BxTxD, torch.stack(stats)

    def forward(self, tokens_BxT: Tensor, probe: Probe = Probe.OFF) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the statistics (N, S)."""
        x_BxTxD, stats_NxS = self.hidden(tokens_BxT, probe)
        return self.logits(x_BxTxD), stats_NxS

    def logits(self, x_BxTxD: Tensor) -> Tensor:
        """Logits (B, T, V) of the stream after the last block."""
        logits_BxTxV: Tensor = self.head_out(self.head(self.final_norm(x_BxTxD)))
        return logits_BxTxV

    def loss(self, x_BxTxD: Tensor, targets_BxT: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """What training minimizes, the loss, and mean log Z, of the stream after the last block.

        The first is the loss + ``z_loss`` times the mean of log²Z, the other two carry no gradient. One function, so
        that a compiler can fuse it.
        """
        loss, log_z_BxT = next_token_loss(self.logits(x_BxTxD), targets_BxT)
        objective = loss + z_loss * log_z_BxT.square().mean() if z_loss else loss
        return objective, loss.detach(), log_z_BxT.detach().mean()

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

    def clip_heads(self, apply: Tensor) -> None:
        """:meth:`Attention.clip_heads` on every layer; nothing where the row has no ``qk_clip``."""
        if self.scheme.qk_clip is not None:
            for module in self.modules():
                if isinstance(module, Attention):
                    module.clip_heads(apply)

    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(p.numel() for p in self.parameters())


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is an embedding or a linear layer's weight; gains and biases have one axis at most."""
    return parameter.ndim == 2


def next_token_loss(logits_BxTxV: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats per token, and log Z = logsumexp of the logits of each token (B, T)."""
    logits_BxTxV = logits_BxTxV.float()
    log_z_BxT = logits_BxTxV.logsumexp(dim=-1)
    target_logit_BxT = logits_BxTxV.gather(-1, targets_BxT[..., None])[..., 0]
    return (log_z_BxT - target_logit_BxT).mean(), log_z_BxT


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """Give every parameter its initial value: matrices as :mod:`lrsweep.model.init` says, gains by their ``start``.

    Under ``mup_base`` a matrix of the blocks has the standard deviation that its init gives at the base width, divided
    by √(d/base); embedding and head have that of the base width.
    """
    scheme, shape = model.scheme, model.shape
    ratio = 1.0 if scheme.mup_base is None else shape.d_model / scheme.mup_base
    gated = isinstance(model.blocks[0].mlp, SwigluMLP)
    for name, parameter in model.named_parameters():
        if not is_matrix(parameter):
            continue
        cut = 3.0 if scheme.init == "simplegpt" and name == "head.weight" else None
        values = draw(name, parameter.shape, seed, cut=cut)
        parts = tuple(sites(name, parameter.shape, gated=gated, n_layers=shape.n_layers, d_model=shape.d_model))
        for rows, site in zip(values.chunk(len(parts)), parts, strict=True):
            rows *= _std(scheme, site, ratio)
        if scheme.init == "unit":
            project(values, row_axis(scheme, name), "sphere")
        parameter.copy_(values)
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
