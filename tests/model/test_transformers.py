"""The baseline and qk-norm against transformers' Llama, GPT-NeoX and Qwen3 with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lrsweep.config import mlp_width
from lrsweep.model import GPT, next_token_loss
from lrsweep.schemes import find
from tests.model.reference import SHAPE, build, random_tokens

COMMON = {
    "vocab_size": SHAPE.vocab_size,
    "hidden_size": SHAPE.d_model,
    "num_hidden_layers": SHAPE.n_layers,
    "num_attention_heads": SHAPE.n_heads,
    "max_position_embeddings": SHAPE.seq_len,
    "tie_word_embeddings": False,
    "use_cache": False,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def livelier(model: GPT) -> GPT:
    """Gains off 1 and off one another, and matrices ten times their initial size."""
    generator = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.mul_(10) if p.ndim == 2 else p.add_(torch.randn(p.shape, generator=generator) / 4)
    return model


def llama_pairs(ours: GPT, theirs: nn.Module) -> Pairs:
    """(their parameter, our tensor of the same meaning), the tensor a view, so that it also slices gradients."""
    pairs = [
        (theirs.model.embed_tokens.weight, ours.embedding),
        (theirs.model.norm.weight, ours.final_norm.gain),
        (theirs.lm_head.weight, ours.head.weight),
    ]
    for mine, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        attn, mlp = layer.self_attn, layer.mlp
        qkv = zip((attn.q_proj, attn.k_proj, attn.v_proj), mine.attn.qkv.weight.chunk(3), strict=True)
        gate_up = zip((mlp.gate_proj, mlp.up_proj), mine.mlp.fc1.weight.chunk(2), strict=True)
        pairs += [(linear.weight, part) for linear, part in (*qkv, *gate_up)]
        pairs += [
            (attn.o_proj.weight, mine.attn.proj.weight),
            (mlp.down_proj.weight, mine.mlp.fc2.weight),
            (layer.input_layernorm.weight, mine.attn_norm.gain),
            (layer.post_attention_layernorm.weight, mine.mlp_norm.gain),
        ]
        if hasattr(attn, "q_norm"):
            pairs += [(attn.q_norm.weight, mine.attn.q_norm.gain), (attn.k_norm.weight, mine.attn.k_norm.gain)]
    return pairs


def neox_pairs(ours: GPT, theirs: nn.Module) -> Pairs:
    """The same for GPT-NeoX, whose QKV holds q, k, v of one head after another."""
    pairs = [
        (theirs.gpt_neox.embed_in.weight, ours.embedding),
        (theirs.gpt_neox.final_layer_norm.weight, ours.final_norm.gain),
        (theirs.get_output_embeddings().weight, ours.head.weight),
    ]
    for mine, layer in zip(ours.blocks, theirs.gpt_neox.layers, strict=True):
        by_head = mine.attn.qkv.weight.unflatten(0, (3, SHAPE.n_heads, SHAPE.d_head)).transpose(0, 1)
        pairs += [
            (layer.attention.query_key_value.weight, by_head.reshape(3 * SHAPE.d_model, SHAPE.d_model)),
            (layer.attention.dense.weight, mine.attn.proj.weight),
            (layer.mlp.dense_h_to_4h.weight, mine.mlp.fc1.weight),
            (layer.mlp.dense_4h_to_h.weight, mine.mlp.fc2.weight),
            (layer.input_layernorm.weight, mine.attn_norm.gain),
            (layer.post_attention_layernorm.weight, mine.mlp_norm.gain),
        ]
    return pairs


def llama() -> nn.Module:
    ff = mlp_width(find("preln"), "llama", SHAPE.d_model)
    return LlamaForCausalLM(LlamaConfig(**COMMON, intermediate_size=ff, rms_norm_eps=1e-5, rope_parameters=ROPE))


def qwen3() -> nn.Module:
    ff = mlp_width(find("preln"), "llama", SHAPE.d_model)
    heads = {"num_key_value_heads": SHAPE.n_heads, "head_dim": SHAPE.d_head}
    return Qwen3ForCausalLM(
        Qwen3Config(**COMMON, **heads, intermediate_size=ff, rms_norm_eps=1e-5, rope_parameters=ROPE)
    )


def neox() -> nn.Module:
    config = GPTNeoXConfig(
        **COMMON,
        intermediate_size=mlp_width(find("preln"), "gpt", SHAPE.d_model),
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-5,
        use_parallel_residual=False,
        attention_bias=False,
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0},
    )
    model = GPTNeoXForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    ("scheme", "body", "make", "pair"),
    [
        ("preln", "llama", llama, llama_pairs),
        ("qknorm", "llama", qwen3, llama_pairs),
        ("preln", "gpt", neox, neox_pairs),
    ],
    ids=["preln-llama-LlamaForCausalLM", "qknorm-llama-Qwen3ForCausalLM", "preln-gpt-GPTNeoXForCausalLM"],
)
def test_logits_loss_and_gradients_equal_transformers(
    scheme: str, body: str, make: Callable[[], nn.Module], pair: Callable[[GPT, nn.Module], Pairs]
) -> None:
    """Weights copied over: logits and loss to 1e-5, every gradient to 1e-5 of its largest entry."""
    torch.manual_seed(0)
    ours, theirs = livelier(build(scheme, body)), make()
    pairs = pair(ours, theirs)
    theirs_without_bias = [p for n, p in theirs.named_parameters() if not n.endswith("bias")]
    assert {id(p) for p in theirs_without_bias} == {id(p) for p, _ in pairs}, "a parameter of theirs was left out"
    with torch.no_grad():
        for their, our in pairs:
            their.copy_(our)

    tokens = random_tokens(extra=1)
    logits, _ = ours(tokens[:, :-1])
    their_logits = theirs(input_ids=tokens[:, :-1]).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)

    loss, _ = next_token_loss(logits, tokens[:, 1:])
    their_loss = nn.functional.cross_entropy(their_logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-5)

    # Our gradients, sliced as our weights were: the views above are functions of our parameters.
    our_parts = torch.autograd.grad(loss, list(ours.parameters()))
    with torch.no_grad():
        for p, gradient in zip(ours.parameters(), our_parts, strict=True):
            p.copy_(gradient)
    their_loss.backward()
    for their, our in pair(ours, theirs):
        assert their.grad is not None
        scale = their.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(our.detach(), their.grad, rtol=1e-4, atol=1e-5 * scale)
