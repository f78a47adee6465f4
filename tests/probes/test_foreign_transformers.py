"""A probe on tiny models of transformers, against hooks and an attention function of the tests' own in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lrsweep.probes import Probe
from tests.probes.foreign_models import Values, assert_close, expected_norms

LAYERS, WIDTH, HEADS, SEQ, VOCABULARY, WINDOW = 2, 32, 4, 12, 61, 5
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": SEQ,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GQA = {**COMMON, "num_key_value_heads": 2}
LLAMA_SITES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "proj": ("self_attn.o_proj",),
    "fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "fc2": ("mlp.down_proj",),
}
GPT2_SITES = {"qkv": ("attn.c_attn",), "proj": ("attn.c_proj",), "fc1": ("mlp.c_fc",), "fc2": ("mlp.c_proj",)}
NEOX_SITES = {
    "qkv": ("attention.query_key_value",),
    "proj": ("attention.dense",),
    "fc1": ("mlp.dense_h_to_4h",),
    "fc2": ("mlp.dense_4h_to_h",),
}
PHI3_SITES = {**LLAMA_SITES, "qkv": ("self_attn.qkv_proj",), "fc1": ("mlp.gate_up_proj",)}


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=SEQ,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, tuple[str, ...]]]] = {
    "gpt2": (gpt2, "transformer.h", GPT2_SITES),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**GQA)), "model.layers", LLAMA_SITES),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**GQA, sliding_window=WINDOW)), "model.layers", LLAMA_SITES),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**GQA)), "model.layers", LLAMA_SITES),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**GQA, head_dim=8)), "model.layers", LLAMA_SITES),
    "gemma2": (
        lambda: Gemma2ForCausalLM(
            Gemma2Config(**GQA, head_dim=8, query_pre_attn_scalar=4, attn_logit_softcapping=2.0, sliding_window=WINDOW)
        ),
        "model.layers",
        LLAMA_SITES,
    ),
    "gemma3": (
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **GQA, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        "model.layers",
        LLAMA_SITES,
    ),
    "gpt_neox": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON)), "gpt_neox.layers", NEOX_SITES),
    "phi3": (lambda: Phi3ForCausalLM(Phi3Config(**GQA)), "model.layers", PHI3_SITES),
}


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family][0]().train()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6) if p.ndim == 2 else p.add_(torch.randn_like(p) / 4)
    return model


def batch(seed: int = 3) -> Tensor:
    return torch.randint(2, VOCABULARY, (3, SEQ), generator=torch.Generator().manual_seed(seed))


def train_step(model: nn.Module, tokens: Tensor, **inputs: Tensor) -> None:
    model(input_ids=tokens, **inputs).logits.logsumexp(-1).mean().backward()


@pytest.fixture
def spied() -> Iterator[Callable[..., Values]]:
    """A function that runs a model on an attention of the tests' own, and tells its logits by layer."""
    found: Values = {}
    valid = torch.ones(3, SEQ, dtype=torch.bool)

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        scaling: float,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        group = query.shape[1] // key.shape[1]
        q, k, v = (t.detach().double() for t in (query, key, value))
        logits = torch.stack(
            [scaling * q[:, h] @ k[:, h // group].transpose(-1, -2) for h in range(query.shape[1])], dim=1
        )
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        distance = torch.arange(SEQ)[:, None] - torch.arange(SEQ)
        allowed = (distance >= 0) & (distance < (sliding_window or SEQ)) & valid[:, None, None, :]
        kept = logits[allowed.expand_as(logits)]
        found[module.layer_idx, "attn", "logit_max"] = kept.max().item()
        found[module.layer_idx, "attn", "logit_rms"] = kept.square().mean().sqrt().item()
        mixed = logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v.repeat_interleave(group, dim=1)
        return mixed.type_as(value).transpose(1, 2), None

    AttentionInterface.register("spy", attention)

    def run(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Values:
        if mask is not None:
            valid.copy_(mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("spy")
        with torch.no_grad():
            model(input_ids=tokens)
        model.set_attn_implementation(before)
        return found

    yield run
    del AttentionInterface._global_mapping["spy"]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_every_family(family: str, spied: Callable[..., Values]) -> None:
    model, (_, stack, sites) = build(family), FAMILIES[family]
    wanted = {**expected_norms(model, batch(), stack, sites, range(LAYERS)), **spied(model, batch())}
    assert len(wanted) == LAYERS * (len(sites) + 1) * 2
    with Probe(model, logits=True) as probe:
        train_step(model, batch())
        assert_close(probe.read().values, wanted, rtol=2e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_counts_for_nothing(implementation: str, spied: Callable[..., Values]) -> None:
    """Both implementations, which hold their masks in different forms."""
    model, mask = build("llama"), torch.ones(3, SEQ, dtype=torch.long)
    mask[1, 7:], mask[2, 4:] = 0, 0
    wanted = spied(model, batch(), mask.bool())
    model.set_attn_implementation(implementation)
    with Probe(model, logits=True) as probe:
        train_step(model, batch(), attention_mask=mask)
        values = probe.read().values
        assert_close({key: values[key] for key in wanted}, wanted, rtol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_compiled_in_one_graph(family: str) -> None:
    torch.compiler.reset()
    model = build(family)
    with Probe(model, logits=True) as probe:
        train_step(model, batch())
        eager = probe.read().values
        train_step(torch.compile(model, backend="aot_eager", fullgraph=True), batch())
        assert_close(probe.read().values, eager)
    torch.compiler.reset()


def test_gradient_checkpointing() -> None:
    model = build("llama")
    with Probe(model, logits=True) as probe:
        train_step(model, batch())
        plain = probe.read().values
        model.gradient_checkpointing_enable({"use_reentrant": False})
        train_step(model, batch())
        assert_close(probe.read().values, plain)
