"""Every scheme on both bodies against its formula, written out independently in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrsweep.model import GPT, ProbeLevel
from lrsweep.model.linear import SigmaReparam
from lrsweep.schemes import all_schemes, rybakov
from tests.model.formulas import power_iteration
from tests.model.reference import (
    BODIES,
    EVERY_CASE,
    RECIPES,
    ROWS,
    SHAPE,
    build,
    random_double,
    random_tokens,
    reference_of,
    stream_after,
    weights_of,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def run_model(model: GPT, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Output of every block, and the logits."""
    outputs: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, _i, out: outputs.append(stream_after(m, out))) for b in model.blocks]
    logits, _ = model(tokens, ProbeLevel.OFF)
    for hook in hooks:
        hook.remove()
    return outputs, logits


def test_every_registered_row_has_its_formula() -> None:
    assert [s.name for s in rybakov.SCHEMES] == list(RECIPES)
    assert {s.name for s in all_schemes()} == set(ROWS)
    assert len(ROWS) == 24


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_block_outputs_and_logits_equal_the_formula(name: str, body: str) -> None:
    """All to 1e-9 in float64, with random gains, logits beyond the cap of 50, and the true σ in σReparam."""
    model = random_double(name, body).eval()
    tokens = random_tokens()
    outputs, logits = run_model(model, tokens)
    expected, expected_logits = reference_of(name, body, weights_of(model)).forward(tokens)
    assert len(outputs) == SHAPE.n_layers
    for output, block in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, block, **CLOSE)
    torch.testing.assert_close(logits, expected_logits, **CLOSE)


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_gradients_equal_the_formula(name: str, body: str) -> None:
    """The gradient of a random functional of the logits, by every parameter, relative to its largest entry."""
    model = random_double(name, body).eval()
    tokens, weights = random_tokens(), weights_of(model)
    _, logits = run_model(model, tokens)
    _, expected = reference_of(name, body, weights).forward(tokens)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in model.named_parameters():
        gradient, reference = parameter.grad, weights[key].grad
        assert gradient is not None, key
        assert reference is not None, key
        assert reference.abs().max() > 0, key
        torch.testing.assert_close(
            gradient, reference, rtol=1e-6, atol=1e-9 * reference.abs().max().item(), msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("body", BODIES)
def test_sigma_reparam_in_training_takes_one_step_of_power_iteration(body: str) -> None:
    """W has moved off its start, so that u and v are not yet its singular vectors; two forwards, then a gradient."""
    model = random_double("sigma_reparam", body).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SigmaReparam):
                noise = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight += noise / module.weight.shape[1] ** 0.5
    tokens = random_tokens()
    direction = torch.randn(2, SHAPE.seq_len, SHAPE.vocab_size, generator=generator, dtype=torch.float64)
    for _ in range(2):
        weights = weights_of(model)
        model.zero_grad()
        outputs, logits = run_model(model, tokens)
        (logits * direction).sum().backward()
        reference = reference_of("sigma_reparam", body, weights, trained=True)
        expected, expected_logits = reference.forward(tokens)
        (expected_logits * direction).sum().backward()
        torch.testing.assert_close(outputs, expected, **CLOSE)
        torch.testing.assert_close(logits, expected_logits, **CLOSE)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, weights[key].grad, rtol=1e-7, atol=1e-7)
        for key, buffer in model.named_buffers():
            if key.endswith(".u"):
                layer = key.removesuffix(".u")
                u, v, _ = power_iteration(weights[f"{layer}.weight"], weights[f"{layer}.v"])
                torch.testing.assert_close(buffer, u, **CLOSE)
                torch.testing.assert_close(model.get_buffer(f"{layer}.v"), v, **CLOSE)
    true = reference_of("sigma_reparam", body, weights).forward(tokens)[1]
    assert (true - expected_logits).abs().max() > 1e-4, "power iteration has converged: this test tells nothing apart"


ONLY_INIT_OR_GRADIENT = ("vanilla_init", "xavier_init", "embed_detach")


@pytest.mark.parametrize(("name", "body"), [c for c in EVERY_CASE if c[0] not in ("preln", *ONLY_INIT_OR_GRADIENT)])
def test_the_weights_of_these_tests_tell_every_row_from_its_baseline(name: str, body: str) -> None:
    """With the row's own change or its modifiers left out, the formula's logits differ far beyond the tolerance."""
    without = {"qk_fc_norm": "qknorm", "qknorm_cap": "qknorm", "deepnorm": "post_ln"}.get(name, "preln")
    if "+" in name:
        without = name.split("+")[0]
    weights, tokens = weights_of(random_double(name, body)), random_tokens()
    with torch.no_grad():
        ours = reference_of(name, body, weights).forward(tokens)[1]
        gains = {k: torch.ones_like(v) for k, v in weights_of(build(without, body)).items() if k not in weights}
        baseline = reference_of(without, body, gains | weights).forward(tokens)[1]
    assert (ours - baseline).abs().max() > 1e-4


@pytest.mark.parametrize("body", BODIES)
def test_a_row_of_the_batch_depends_on_no_other(body: str) -> None:
    """Two sequences together and one by one."""
    model, tokens = random_double("qkv_norm", body).eval(), random_tokens()
    together = model(tokens)[0]
    for row in range(2):
        torch.testing.assert_close(model(tokens[row : row + 1])[0], together[row : row + 1], **CLOSE)


@pytest.mark.parametrize("body", BODIES)
def test_a_shorter_sequence_is_a_prefix(body: str) -> None:
    """The first 5 tokens alone give the logits they give within 12."""
    model, tokens = random_double("soft_cap", body).eval(), random_tokens()
    torch.testing.assert_close(model(tokens[:, :5])[0], model(tokens)[0][:, :5], **CLOSE)


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_fp32_agrees_with_float64(name: str, body: str) -> None:
    """The model as it is used, in fp32, against the float64 formula at its initial weights."""
    model, tokens = build(name, body).eval(), random_tokens()
    expected = reference_of(name, body, weights_of(model)).forward(tokens)[1]
    atol = 1e-6 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(model(tokens)[0].double(), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_the_largest_attention_logit_reported_is_that_of_the_formula(name: str, body: str) -> None:
    """In fp32, before any cap, whatever normalizes and scales q and k."""
    model, tokens = random_double(name, body).float().eval(), random_tokens()
    reference = reference_of(name, body, weights_of(model))
    reference.forward(tokens)
    reported = model(tokens, ProbeLevel.ALL)[1][:, model.stat_names.index(("attn", "logit_max"))]
    torch.testing.assert_close(reported.double(), torch.stack(reference.largest_logit).amax(-1), rtol=2e-5, atol=1e-6)
