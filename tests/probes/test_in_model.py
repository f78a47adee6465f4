"""The statistics in a model's output against hooks on its linear layers, and what measuring does to training."""

from __future__ import annotations

import copy
import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from lrsweep.model import GPT, ProbeLevel, next_token_loss
from lrsweep.model.block import SITES
from tests.model.reference import ALL_CASES, ALL_RECIPES, SHAPE, build, random_tokens, randomise, rope

LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def measured(name: str, body: str, probe: ProbeLevel = ProbeLevel.ALL) -> tuple[GPT, Tensor, dict[str, list[Tensor]]]:
    """A randomised model, its statistics, and what hooks saw: outputs of the linears and of the norms on q and k."""
    model = randomise(build(name, body)).eval()
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for block in model.blocks:
        for key, path in {**LINEARS, "q": "attn.q_norm", "k": "attn.k_norm"}.items():
            block.get_submodule(path).register_forward_hook(
                lambda _m, _i, out, key=key: seen[key].append(out.detach().double())
            )
    _, layers_NxS = model(random_tokens(), probe)
    assert all(len(outputs) == SHAPE.n_layers for outputs in seen.values())
    return model, layers_NxS, seen


def causal(s_BxHxTxT: Tensor) -> Tensor:
    return s_BxHxTxT[..., torch.ones(s_BxHxTxT.shape[-2:], dtype=torch.bool).tril()]


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
def test_statistics_of_every_layer_equal_those_of_hooks(name: str, body: str) -> None:
    """Norms of the linears' own outputs, before any norm that follows; logits as they enter cap and softmax."""
    model, layers, seen = measured(name, body)
    recipe = ALL_RECIPES[name]
    assert layers.dtype == torch.float32
    assert layers.shape == (SHAPE.n_layers, len(model.stat_names))
    assert not layers.requires_grad
    for layer in range(SHAPE.n_layers):
        expected = {}
        for site in SITES:
            norms = seen[site][layer].norm(dim=-1)
            expected[site, "l2_rms"] = norms.square().mean().sqrt()
            expected[site, "l2_max"] = norms.max()
        q, k = rope(seen["q"][layer]), rope(seen["k"][layer])
        logits = causal(recipe.beta * torch.einsum("bihk,bjhk->bhij", q, k) / SHAPE.d_head**0.5)
        expected["attn", "logit_max"] = logits.max()
        expected["attn", "logit_rms"] = logits.square().mean().sqrt()
        if math.isfinite(recipe.cap):
            capped = recipe.cap * torch.tanh(logits / recipe.cap)
            expected["attn", "logit_max_capped"] = capped.max()
            expected["attn", "logit_rms_capped"] = capped.square().mean().sqrt()
            assert capped.max() < 0.95 * logits.max(), "the cap does not bite: this test tells nothing apart"
        assert tuple(expected) == model.stat_names
        torch.testing.assert_close(layers[layer].double(), torch.stack(list(expected.values())), rtol=2e-5, atol=0)


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
def test_levels_of_probing(name: str, body: str) -> None:
    """OFF: no column. NORMS: the norms of ALL, bitwise, and NaN for the logits. ALL: all finite."""
    model, everything, _ = measured(name, body, ProbeLevel.ALL)
    norms, off = measured(name, body, ProbeLevel.NORMS)[1], measured(name, body, ProbeLevel.OFF)[1]
    assert off.shape == (SHAPE.n_layers, 0)
    assert norms.shape == everything.shape
    logits = torch.tensor([site == "attn" for site, _ in model.stat_names])
    assert torch.isfinite(everything).all()
    assert torch.isnan(norms[:, logits]).all()
    assert torch.equal(norms[:, ~logits], everything[:, ~logits])


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
def test_measuring_changes_no_bit_of_loss_and_gradients(name: str, body: str) -> None:
    """In training, where σReparam also moves u and v."""
    tokens = random_tokens(extra=1)
    results = []
    start = randomise(build(name, body)).train()
    for probe in ProbeLevel:
        model = copy.deepcopy(start)
        loss, log_z = next_token_loss(model(tokens[:, :-1], probe)[0], tokens[:, 1:])
        loss.backward()
        results.append([loss, log_z, *(p.grad for p in model.parameters()), *model.buffers()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_activation_shows_from_its_layer_on(name: str, body: str, bad: float) -> None:
    """Poison in FC1 of the second layer: the first layer's statistics stay, the second's FC1 and FC2 show it."""
    model, clean, _ = measured(name, body)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = bad
    _, layers = model(random_tokens(), ProbeLevel.ALL)
    sites = [site for site, _ in model.stat_names]
    assert torch.equal(layers[0], clean[0])
    for column, site in enumerate(sites):
        finite = torch.isfinite(layers[1, column])
        assert finite != (site in ("fc1", "fc2")), site
