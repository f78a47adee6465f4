"""Initial weights, parameter counts and the loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.config import SIZES, ModelShape
from lrsweep.model import GPT, next_token_loss
from lrsweep.model.block import LayerScale
from lrsweep.model.gpt import init_weights
from lrsweep.schemes import find
from tests.model.reference import ALL_CASES, BODIES, CASES, RECIPES, build

WIDE = ModelShape(n_layers=3, d_model=96, n_heads=4, seq_len=4, vocab_size=300)


def matrices(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize(("name", "body"), CASES)
def test_every_matrix_starts_normal_with_its_own_deviation(name: str, body: str) -> None:
    """0.02; 0.02/√(2N) for what writes into the stream. Mean, deviation and kurtosis within 5 standard errors."""
    for key, p in matrices(build(name, body, shape=WIDE)).items():
        into_stream = "attn.proj" in key or "mlp.fc2" in key
        std = 0.02 / (6**0.5 if into_stream else 1)
        z, n = p.double().flatten() / std, p.numel()
        assert abs(z.mean().item()) < 5 / n**0.5, key
        assert abs(z.square().mean().item() - 1) < 5 * (2 / n) ** 0.5, key
        assert abs(z.pow(4).mean().item() - 3) < 5 * (96 / n) ** 0.5, key


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
def test_every_vector_starts_at_one_or_as_its_kind_says(name: str, body: str) -> None:
    """Gains of norms 1, of LayerScale 1e-4, of σReparam the spectral norm; nothing is left as memory was."""
    model = build(name, body)
    for key, p in model.named_parameters():
        assert torch.isfinite(p).all()
        if key.endswith("norm.gain"):
            assert (p == 1).all()
        elif key.endswith("residual.gain"):
            assert torch.equal(p, torch.full_like(p, 1e-4))
        elif key.endswith("sigma_gain"):
            spectral = torch.linalg.matrix_norm(model.get_parameter(key.replace("sigma_gain", "weight")), 2)
            torch.testing.assert_close(p, spectral, rtol=1e-5, atol=0)
        else:
            assert p.ndim == 2, key


@pytest.mark.parametrize(("layers", "gain"), [(1, 1e-4), (12, 1e-4), (13, 1e-5), (24, 1e-5)])
def test_layerscale_starts_smaller_in_models_deeper_than_12_layers(layers: int, gain: float) -> None:
    shape = ModelShape(n_layers=layers, d_model=4, n_heads=1, seq_len=2, vocab_size=4)
    scales = [m for m in build("layerscale", "gpt", shape=shape).modules() if isinstance(m, LayerScale)]
    assert len(scales) == 2 * layers
    for scale in scales:
        assert scale.gain.shape == (4,)
        assert torch.equal(scale.gain.detach(), torch.full((4,), gain))


@pytest.mark.parametrize(("name", "body"), ALL_CASES)
def test_schemes_of_one_seed_share_every_matrix(name: str, body: str) -> None:
    """Bitwise the baseline's, wherever name and shape agree: here all of them."""
    ours, baseline = matrices(build(name, body, seed=7)), matrices(build("preln", body, seed=7))
    assert ours.keys() == baseline.keys()
    for key in ours:
        assert torch.equal(ours[key], baseline[key])


def test_bodies_of_one_seed_share_the_matrices_of_one_shape() -> None:
    gpt, llama = matrices(build("preln", "gpt")), matrices(build("preln", "llama"))
    same = [k for k in gpt if gpt[k].shape == llama[k].shape]
    assert {k.split(".")[-2] for k in same if "." in k} == {"qkv", "proj", "head"}
    for key in same:
        assert torch.equal(gpt[key], llama[key])


@pytest.mark.parametrize("name", RECIPES)
def test_a_second_init_equals_the_first_whatever_came_between(name: str) -> None:
    """All parameters and buffers, bitwise; the global random state is neither read nor moved."""
    fresh = build(name, "llama", seed=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    used = build(name, "llama", seed=11)
    with torch.no_grad():
        for tensor in (*used.parameters(), *used.buffers()):
            tensor.add_(0.5) if tensor is not used.cos and tensor is not used.sin else None
    init_weights(used, 3)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in (*fresh.named_parameters(), *fresh.named_buffers()):
        assert torch.equal(value, dict((*used.named_parameters(), *used.named_buffers()))[key]), key


@pytest.mark.parametrize("body", BODIES)
def test_seeds_and_matrices_have_streams_of_their_own(body: str) -> None:
    """No two matrices of one shape are alike, within a seed or between two; correlation within 5 standard errors."""
    drawn = [p for seed in (0, 1) for p in matrices(build("preln", body, seed=seed, shape=WIDE)).values()]
    pairs = [(a, b) for a, b in itertools.combinations(drawn, 2) if a.shape == b.shape]
    assert len(pairs) > len(drawn) / 2
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()
        assert abs(correlation) < 5 / a.numel() ** 0.5


def expected_count(name: str, body: str, shape: ModelShape) -> int:
    """Closed form: embedding and head; attention 4d²; MLP 8d², or 3·d·⌈8d/3⌉₆₄; the gains of the row."""
    d, n, head = shape.d_model, shape.n_layers, shape.d_model // shape.n_heads
    mlp = 8 * d * d if body == "gpt" else 3 * d * (-(-8 * d // 192) * 64)
    gains = {
        "preln": 2 * d,
        "soft_temp": 2 * d,
        "soft_clip": 2 * d,
        "sigma_reparam": 2 * d + 4,
        "layerscale": 4 * d,
        "soft_cap": 2 * d,
        "qknorm": 2 * d + 2 * head,
        "qk_fc_norm": 4 * d + 2 * head,
        "qkv_norm": d + 3 * head,
        "qknorm_cap": 2 * d + 2 * head,
    }[name]
    return 2 * shape.vocab_size * d + n * (4 * d * d + mlp + gains) + d + (name == "sigma_reparam")


@pytest.mark.parametrize(("name", "body"), CASES)
def test_parameter_counts_of_every_preset_equal_the_closed_form(name: str, body: str) -> None:
    for preset in SIZES.values():
        with torch.device("meta"):
            model = GPT(find(name), body, preset.shape)  # type: ignore[arg-type]
        assert model.n_params() == expected_count(name, body, preset.shape), preset.name


@pytest.mark.parametrize("preset", SIZES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("body", BODIES)
def test_presets_are_named_by_their_parameter_count(preset, body: str) -> None:  # type: ignore[no-untyped-def]
    """Within 25%: the name is rounded, and llama's MLP is a little wider than gpt's."""
    named = float(preset.name.removesuffix("m")) * 1e6
    assert expected_count("preln", body, preset.shape) == pytest.approx(named, rel=0.25)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    seq=st.integers(1, 9),
    vocab=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([0.1, 10.0, 1e4]),
)
def test_loss_is_cross_entropy_and_log_z_its_normaliser(
    batch: int, seq: int, vocab: int, seed: int, size: float
) -> None:
    """In nats per token, against float64; the gradient is (softmax − one-hot)/tokens and log Z carries none."""
    generator = torch.Generator().manual_seed(seed)
    logits = (size * torch.randn(batch, seq, vocab, generator=generator)).requires_grad_()
    targets = torch.randint(vocab, (batch, seq), generator=generator)
    loss, log_z = next_token_loss(logits, targets)
    exact = logits.detach().double().requires_grad_()
    reference = -torch.log_softmax(exact, -1).gather(-1, targets[..., None]).mean()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5, abs=1e-6 * size)
    assert log_z.item() == pytest.approx(exact.logsumexp(-1).mean().item(), rel=1e-5, abs=1e-6 * size)
    assert not log_z.requires_grad
    loss.backward()
    reference.backward()
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6 * max(1.0, size / 100))


def test_an_untrained_model_is_near_the_uniform_loss() -> None:
    """log V up to the variance of the initial logits, which is (0.02)²·d: half of it, 0.02 nats at most."""
    model = build("preln", "gpt", shape=WIDE)
    tokens = torch.arange(5).expand(8, 5)
    loss, log_z = next_token_loss(model(tokens[:, :-1])[0], tokens[:, 1:])
    uniform = torch.tensor(float(WIDE.vocab_size)).log().item()
    assert log_z.item() == pytest.approx(uniform + 0.02**2 * WIDE.d_model / 2, abs=0.01)
    assert loss.item() == pytest.approx(uniform, abs=0.5)
