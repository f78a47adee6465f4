"""Small GPTs in the manner of others, and what a probe should find in them, worked out in float64 by plain hooks.

Legend: B batch, T sequence, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# The tensors of these tests are tiny: more threads would only wait for one another, and sums must come out one way.
torch.set_num_threads(1)

VOCABULARY, WIDTH, HEADS, LAYERS, SEQ = 31, 24, 3, 2, 10
Values = dict[tuple[int, str, str], float]


class FusedAttention(nn.Module):
    """nanoGPT's: one matrix for q, k and v; the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.seen: tuple[Tensor, Tensor] | None = None
        self.keep = False

    def qkv(self, x_BxTxD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.c_attn(x_BxTxD).unflatten(-1, (3, HEADS, -1)).unbind(-3)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, is_causal=True)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = self.qkv(x_BxTxD)
        if self.keep:
            self.seen = q_BxHxTxK.detach(), k_BxHxTxK.detach()
        return self.c_proj(self.mix(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK).transpose(1, 2).flatten(-2))


class MaterialisedAttention(FusedAttention):
    """The same with its softmax written out."""

    def mix(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        s_BxHxTxT = q_BxHxTxK @ k_BxHxTxK.transpose(-1, -2) * q_BxHxTxK.shape[-1] ** -0.5
        above = torch.ones(s_BxHxTxT.shape[-2:], dtype=torch.bool, device=s_BxHxTxT.device).triu(1)
        return F.softmax(s_BxHxTxT.masked_fill(above, -torch.inf), dim=-1) @ v_BxHxTxK


class SeparateAttention(FusedAttention):
    """nanochat's: a matrix each, norms on q and k, fewer heads for k and v."""

    def __init__(self) -> None:
        super().__init__()
        del self.c_attn
        self.c_q = nn.Linear(WIDTH, WIDTH)
        self.c_k = nn.Linear(WIDTH, WIDTH // HEADS)
        self.c_v = nn.Linear(WIDTH, WIDTH // HEADS)

    def qkv(self, x_BxTxD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (c(x_BxTxD).unflatten(-1, (-1, WIDTH // HEADS)) for c in (self.c_q, self.c_k, self.c_v))
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, is_causal=True, enable_gqa=True)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.c_proj = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BxTxD)))


class Block(nn.Module):
    def __init__(self, attention: type[FusedAttention]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attention(), MLP()

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        x_BxTxD = x_BxTxD + self.attn(self.ln_1(x_BxTxD))
        return x_BxTxD + self.mlp(self.ln_2(x_BxTxD))


class TinyGPT(nn.Module):
    """A GPT laid out as nanoGPT; ``checkpointing``: each block anew in backward, and if so, whether reentrant."""

    def __init__(self, attention: type[FusedAttention] = FusedAttention, *, layers: int = LAYERS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "h": nn.ModuleList(Block(attention) for _ in range(layers)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.checkpointing: bool | None = None
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(3) if p.ndim == 2 else p.add_(torch.randn_like(p) / 4)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        x_BxTxD = self.transformer["wte"](tokens_BxT)
        for block in self.transformer["h"]:
            if self.checkpointing is None:
                x_BxTxD = block(x_BxTxD)
            else:
                x_BxTxD = checkpoint(block, x_BxTxD, use_reentrant=self.checkpointing)
        return self.lm_head(self.transformer["ln_f"](x_BxTxD))


PARTS: dict[type[FusedAttention], dict[str, tuple[str, ...]]] = {
    FusedAttention: {"qkv": ("attn.c_attn",)},
    MaterialisedAttention: {"qkv": ("attn.c_attn",)},
    SeparateAttention: {"qkv": ("attn.c_q", "attn.c_k", "attn.c_v")},
}
for sites in PARTS.values():
    sites |= {"proj": ("attn.c_proj",), "fc1": ("mlp.c_fc",), "fc2": ("mlp.c_proj",)}


def batch(*, size: int = 3, seed: int = 5) -> Tensor:
    return torch.randint(VOCABULARY, (size, SEQ), generator=torch.Generator().manual_seed(seed))


def train_step(model: nn.Module, *tokens: Tensor) -> None:
    """Forward and backward of each micro-batch."""
    for tokens_BxT in tokens:
        model(tokens_BxT).logsumexp(-1).mean().backward()


def expected_norms(
    model: nn.Module, tokens: Tensor, stack: str, sites: Mapping[str, Iterable[str]], layers: Iterable[int]
) -> Values:
    """Norms of the concatenated outputs, seen by hooks."""
    seen: dict[str, Tensor] = {}
    layers = list(layers)
    wanted = [f"{stack}.{layer}.{name}" for layer in layers for names in sites.values() for name in names]
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: seen.__setitem__(path, out.detach().double())
        )
        for path in wanted
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    values: Values = {}
    for layer in layers:
        for site, names in sites.items():
            y = torch.cat([seen[f"{stack}.{layer}.{name}"] for name in names], dim=-1)
            norms = y.square().sum(-1).sqrt()
            values[layer, site, "l2_rms"] = norms.square().mean().sqrt().item()
            values[layer, site, "l2_max"] = norms.max().item()
    return values


def expected(model: TinyGPT, tokens: Tensor) -> Values:
    """All that a probe should find in a :class:`TinyGPT`."""
    blocks = list(model.transformer["h"])
    for block in blocks:
        block.attn.keep = True
    values = expected_norms(model, tokens, "transformer.h", PARTS[type(blocks[0].attn)], range(len(blocks)))
    for layer, block in enumerate(blocks):
        block.attn.keep = False
        q, k = (t.double() for t in block.attn.seen)
        logits = torch.einsum("bhik,bhjk->bhij", q, k.expand(-1, HEADS, -1, -1)) / (WIDTH / HEADS) ** 0.5
        causal = logits[..., torch.ones(SEQ, SEQ, dtype=torch.bool).tril()]
        values[layer, "attn", "logit_rms"] = causal.square().mean().sqrt().item()
        values[layer, "attn", "logit_max"] = causal.max().item()
    return values


def assert_close(actual: Values, wanted: Values, *, rtol: float = 1e-5) -> None:
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        assert abs(actual[key] - value) <= rtol * abs(value), (key, actual[key], value)
