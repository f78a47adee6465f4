"""A probe on litgpt's models, where litgpt is installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrsweep.probes import Probe
from tests.probes.foreign_models import Values, assert_close, expected_norms

litgpt = pytest.importorskip("litgpt.model")

LAYERS, SEQ, VOCABULARY = 2, 12, 64
FUSED_MLP = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "fc1": ("mlp.fc",), "fc2": ("mlp.proj",)}
GATED_MLP = {**FUSED_MLP, "fc1": ("mlp.fc_1", "mlp.fc_2")}
CASES = {"pythia-14m": FUSED_MLP, "tiny-llama-1.1b": GATED_MLP, "Gemma-2-2b": GATED_MLP, "Qwen3-0.6B": GATED_MLP}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = litgpt.Config.from_name(
        name,
        n_layer=LAYERS,
        n_embd=32,
        n_head=4,
        n_query_groups=4 if name == "pythia-14m" else 2,
        head_size=8,
        intermediate_size=48,
        padded_vocab_size=VOCABULARY,
        block_size=16,
    )
    return litgpt.GPT(config)


def expected_logits(model: torch.nn.Module, tokens: Tensor) -> Values:
    """From the q and k that litgpt's own method is called with; the window is longer than the sequence."""
    values: Values = {}
    config = model.config
    for layer, block in enumerate(model.transformer.h):
        attention = block.attn

        def spy(q: Tensor, k: Tensor, v: Tensor, mask: object = None, *, layer=layer, attention=attention) -> Tensor:
            scale = (config.attention_scores_scalar or config.head_size) ** -0.5
            logits = scale * q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)
            if config.attention_logit_softcapping is not None:
                logits = config.attention_logit_softcapping * torch.tanh(logits / config.attention_logit_softcapping)
            causal = logits[..., torch.ones(SEQ, SEQ, dtype=torch.bool).tril()]
            values[layer, "attn", "logit_rms"] = causal.square().mean().sqrt().item()
            values[layer, "attn", "logit_max"] = causal.max().item()
            return type(attention).scaled_dot_product_attention(attention, q, k, v, mask)

        attention.scaled_dot_product_attention = spy
    with torch.no_grad():
        model(tokens)
    for block in model.transformer.h:
        del block.attn.scaled_dot_product_attention
    return values


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    model, tokens = build(name), torch.randint(VOCABULARY, (2, SEQ), generator=torch.Generator().manual_seed(1))
    wanted = expected_norms(model, tokens, "transformer.h", CASES[name], range(LAYERS))
    wanted |= expected_logits(model, tokens)
    torch.compiler.reset()
    with Probe(model, logits=True) as probe:
        for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
            run(tokens).logsumexp(-1).mean().backward()
            assert_close(probe.read().values, wanted, rtol=2e-5)
    torch.compiler.reset()
