"""A GPT built from a scheme's row and a body.

Legend: B batch, T sequence, D model width, V vocabulary, N layers, S statistics a layer.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape
from lrsweep.model.attention import rope_tables
from lrsweep.model.block import Block, LayerScale, Probe
from lrsweep.model.linear import LINEARS, SigmaReparam
from lrsweep.model.norms import NORMS, LayerNorm, RMSNorm
from lrsweep.schemes import Scheme


class GPT(nn.Module):
    """Embedding → blocks → final norm → head.

    ``blocks`` hold the transformer; statistics of all layers come back with the output, computed in the graph.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, shape.d_model))
        self.blocks = nn.ModuleList(Block(scheme, body, shape) for _ in range(shape.n_layers))
        self.final_norm = NORMS[body](shape.d_model) if scheme.final_norm else nn.Identity()
        self.head = LINEARS[scheme.linear](shape.d_model, shape.vocab_size)
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
        x_BxTxD = F.embedding(tokens_BxT, self.embedding)
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
        logits_BxTxV: Tensor = self.head(self.final_norm(x_BxTxD))
        return logits_BxTxV

    def loss(self, x_BxTxD: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`next_token_loss` of the stream after the last block; one function, so that a compiler can fuse it."""
        return next_token_loss(self.logits(x_BxTxD), targets_BxT)

    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(p.numel() for p in self.parameters())


def next_token_loss(logits_BxTxV: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats per token, and the mean of log Z = logsumexp of the logits (detached)."""
    logits_BxTxV = logits_BxTxV.float()
    log_z_BxT = logits_BxTxV.logsumexp(dim=-1)
    target_logit_BxT = logits_BxTxV.gather(-1, targets_BxT[..., None])[..., 0]
    return (log_z_BxT - target_logit_BxT).mean(), log_z_BxT.detach().mean()


WEIGHT_STD = 0.02
"""Standard deviation of matrices and embeddings at init (GPT-2)."""


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """Give every parameter its initial value.

    ================================  ==========================================
    parameter                         value
    ================================  ==========================================
    embedding, linear weights         N(0, 0.02²)
    ``proj`` and ``fc2`` weights      N(0, 0.02²/(2N)), N layers (GPT-2)
    gain of a norm                    1
    gain of LayerScale                1e-4 up to 12 layers, 1e-5 beyond
    gain of σReparam                  σ(W)
    ================================  ==========================================

    Gains are set by the ``start`` of their modules. Each matrix is drawn from a stream of its own, keyed by ``seed``
    and its name and made on the CPU: schemes share initial weights wherever names and shapes agree, on every device.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        into_stream = name.endswith(("proj.weight", "fc2.weight"))
        std = WEIGHT_STD / (2 * model.shape.n_layers) ** 0.5 if into_stream else WEIGHT_STD
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    for module in model.modules():
        # After the matrices: the gain of σReparam depends on its weight.
        if isinstance(module, LayerNorm | RMSNorm | LayerScale | SigmaReparam):
            module.start()
