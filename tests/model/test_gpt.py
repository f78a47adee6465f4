"""Parameter counts and the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.config import SIZES, ModelShape
from lrsweep.model import GPT, next_token_loss
from lrsweep.schemes import MODIFIERS, find
from tests.model.reference import BODIES, ROW_CASES, build

WIDE = ModelShape(n_layers=3, d_model=96, n_heads=4, seq_len=4, vocab_size=300)


def expected_count(name: str, body: str, shape: ModelShape) -> int:
    """Closed form: embedding and head 2Vd; attention 4d²; MLP 8d² (gpt) or 3·d·⌈8d/3⌉₆₄ (llama); the row's gains."""
    d, n, v, head = shape.d_model, shape.n_layers, shape.vocab_size, shape.d_model // shape.n_heads
    gated = body == "llama"
    f = -(-8 * d // 192) * 64 if gated else 4 * d
    in_block, outside = {
        "sigma_reparam": (2 * d + 4, d + 1),
        "layerscale": (4 * d, d),
        "qknorm": (2 * d + 2 * head, d),
        "qk_fc_norm": (4 * d + 2 * head, d),
        "qkv_norm": (d + 3 * head, d),
        "qknorm_cap": (2 * d + 2 * head, d),
        "simplenorm": (5 * d + (2 * f if gated else f), d),
        "embed_ln": (2 * d, 2 * d),
        "peri_ln": (4 * d, d),
        "olmo2": (4 * d, d),
        "hybridnorm": (d + 3 * head, d),
        "post_ln": (2 * d, 0),
        "deepnorm": (2 * d, 0),
        "dyt": (2 * (2 * d + 1), 2 * d + 1),
        "ngpt": (d + 2 * d + (8 * d if gated else 4 * d), v),
        "angpt": (2 * d, v),
    }.get(name, (2 * d, d))
    if name in ("ngpt", "angpt"):
        f = 4 * d
    return 2 * v * d + n * (4 * d * d + (3 if gated else 2) * d * f + in_block) + outside


@pytest.mark.parametrize(("name", "body"), ROW_CASES)
def test_parameter_counts_of_every_preset_equal_the_closed_form(name: str, body: str) -> None:
    for preset in SIZES.values():
        with torch.device("meta"):
            model = GPT(find(name), body, preset.shape)  # type: ignore[arg-type]
        assert model.n_params() == expected_count(name, body, preset.shape), preset.name


MODIFIED_COUNTS = {"qknorm+full_qk": ("qknorm", 2), "hybridnorm+full_qk": ("hybridnorm", 3)}
"""Modifiers that change the count, with how many gains become d wide."""


@pytest.mark.parametrize("name", [*MODIFIED_COUNTS, *(f"preln+{m}" for m in MODIFIERS if m != "full_qk")])
def test_modifiers_change_the_count_only_where_they_widen_gains(name: str) -> None:
    row, gains = MODIFIED_COUNTS.get(name, ("preln", 0))
    for preset in (SIZES["0.2m"], SIZES["10m"]):
        with torch.device("meta"):
            model = GPT(find(name), "llama", preset.shape)
        shape = preset.shape
        wider = gains * (shape.d_model - shape.d_head) * shape.n_layers
        assert model.n_params() == expected_count(row, "llama", shape) + wider, preset.name


@pytest.mark.parametrize("preset", SIZES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("body", BODIES)
def test_presets_are_named_by_their_parameter_count(preset, body: str) -> None:  # type: ignore[no-untyped-def]
    """Within 25%: the name is rounded, and llama's MLP is a little wider than gpt's."""
    named = float(preset.name.removesuffix("m")) * 1e6
    assert expected_count("preln", body, preset.shape) == pytest.approx(named, rel=0.25)


@settings(max_examples=40)
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
    torch.testing.assert_close(log_z.detach().double(), exact.detach().logsumexp(-1), rtol=1e-5, atol=1e-6 * size)
    loss.backward()
    reference.backward()
    assert logits.grad is not None
    assert exact.grad is not None
    # log Z is rounded to fp32, by at most its spacing there; exp(logit − log Z) is off by as much in proportion.
    spacing = torch.finfo(torch.float32).eps * logits.detach().abs().max().item()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6 + spacing / (batch * seq))


def test_an_untrained_model_is_near_the_uniform_loss() -> None:
    """log V up to the variance of the initial logits, which is (0.02)²·d: half of it, 0.02 nats at most."""
    model = build("preln", "gpt", shape=WIDE)
    tokens = torch.arange(5).expand(8, 5)
    loss, log_z = next_token_loss(model(tokens[:, :-1])[0], tokens[:, 1:])
    uniform = torch.tensor(float(WIDE.vocab_size)).log().item()
    assert log_z.mean().item() == pytest.approx(uniform + 0.02**2 * WIDE.d_model / 2, abs=0.01)
    assert loss.item() == pytest.approx(uniform, abs=0.5)
