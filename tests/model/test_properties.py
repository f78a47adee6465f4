"""The property that makes each method what it is, on models as they are built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrsweep.model import GPT, next_token_loss
from lrsweep.model.block import SwigluMLP
from lrsweep.model.linear import SigmaReparam
from tests.model.reference import BODIES, SHAPE, build, random_double, random_tokens, stream_after


@torch.no_grad()
def without_epsilon(model: GPT, factor: float = 1e4) -> GPT:
    """Weights of the blocks so large that the 1e-5 under the roots of the norms is out of sight."""
    for p in model.blocks.parameters():
        if p.ndim == 2:
            p.mul_(factor)
    return model


def parts(model: GPT) -> dict[str, Tensor]:
    """Every matrix of the blocks, those fused in QKV and in gate-up apart."""
    found: dict[str, Tensor] = {}
    for i, block in enumerate(model.blocks):
        fc1 = block.mlp.fc1.weight.data
        found |= zip((f"{i}.q", f"{i}.k", f"{i}.v"), block.attn.qkv.weight.data.chunk(3), strict=True)
        found |= {f"{i}.proj": block.attn.proj.weight.data, f"{i}.fc2": block.mlp.fc2.weight.data}
        halves = fc1.chunk(2) if isinstance(block.mlp, SwigluMLP) else (fc1,)
        found |= {f"{i}.fc1.{half}": w for half, w in enumerate(halves)}
    return found


@pytest.mark.parametrize("body", BODIES)
def test_simplenorm_does_not_feel_the_size_of_any_matrix(body: str) -> None:
    """RMSNorm(cWx) = RMSNorm(Wx): each of q, k, v, Proj, FC1, up and FC2 times 7, one at a time. Pre-LN feels all."""
    tokens = random_tokens()
    model, baseline = without_epsilon(random_double("simplenorm", body)).eval(), random_double("preln", body).eval()
    plain, felt = model(tokens)[0], baseline(tokens)[0]
    ours, theirs = parts(model), parts(baseline)
    assert len(ours) == SHAPE.n_layers * (6 if body == "gpt" else 7)
    for key in ours:
        ours[key].mul_(7)
        torch.testing.assert_close(model(tokens)[0], plain, rtol=0, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")
        ours[key].div_(7)
        theirs[key].mul_(7)
        assert (baseline(tokens)[0] - felt).abs().max() > 1e-3, key
        theirs[key].div_(7)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["simplenorm", "peri_ln", "olmo2", "qk_fc_norm"])
def test_what_joins_the_stream_has_rms_of_the_gain(name: str, body: str) -> None:
    """‖f‖/√d = |g| of every token, for gains of −0.7 and of any other size, however large the weights."""
    model = without_epsilon(random_double(name, body)).eval()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.proj_norm.gain.fill_(-0.7 - i)
            block.fc2_norm.gain.fill_(3.0 + i)
    joined: dict[str, Tensor] = {}
    for i, block in enumerate(model.blocks):
        assert block.leaves_late
        block.attn_residual.register_forward_hook(
            lambda _m, inputs, out, key=f"{i}.attn": joined.update({key: out - inputs[0]})
        )
        block.register_forward_hook(lambda _m, _i, out, key=f"{i}.mlp": joined.update({key: out[1]}))
    model(random_tokens())
    for i in range(SHAPE.n_layers):
        for site, gain in (("attn", 0.7 + i), ("mlp", 3.0 + i)):
            rms = joined[f"{i}.{site}"].square().mean(-1).sqrt()
            torch.testing.assert_close(rms, torch.full_like(rms, gain), rtol=1e-6, atol=0)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["post_ln", "deepnorm", "hybridnorm"])
def test_the_stream_is_normalized_where_the_norm_stands_on_it(name: str, body: str) -> None:
    """RMS 1 after each block of post-LN and DeepNorm, before each MLP of HybridNorm; pre-LN's stream grows instead."""

    def stream(model: GPT) -> list[Tensor]:
        seen: list[Tensor] = []
        for block in model.blocks:
            if name == "hybridnorm":
                block.mlp_stream_norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
            else:
                block.register_forward_hook(lambda m, _i, out: seen.append(stream_after(m, out)))
        model(random_tokens())
        return [x.square().mean(-1).sqrt() for x in seen]

    with torch.no_grad():
        model, baseline = (build(n, body).double() for n in (name, "preln"))
        for m in (model, baseline):
            without_epsilon(m).embedding.mul_(1e4)
        for rms in stream(model):
            torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-6, atol=0)
        for rms in stream(baseline):
            assert (rms > 10).all()


@pytest.mark.parametrize("body", BODIES)
def test_embed_detach_passes_a_tenth_of_the_gradient_and_changes_no_value(body: str) -> None:
    """Against vanilla_init, bitwise equal in the loss and in all gradients but the embedding's."""
    tokens = random_tokens(extra=1)
    losses, gradients = [], []
    for name in ("vanilla_init", "embed_detach"):
        model = build(name, body).double()
        loss, _ = next_token_loss(model(tokens[:, :-1])[0], tokens[:, 1:])
        loss.backward()
        losses.append(loss)
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert torch.equal(*losses)
    plain, detached = gradients
    assert plain.keys() == detached.keys()
    for key in plain:
        if key == "embedding":
            assert plain[key].abs().max() > 0
            torch.testing.assert_close(detached[key], 0.1 * plain[key], rtol=1e-12, atol=0)
        else:
            assert torch.equal(detached[key], plain[key]), key


@pytest.mark.parametrize("body", BODIES)
def test_final_cap_bounds_every_output_logit(body: str) -> None:
    """|logit| ≤ 30 where the uncapped ones reach 1,000; c·tanh(x/c) = x − x³/(3c²) where they are small."""
    tokens = random_tokens()
    capped, plain = (random_double(name, body).eval() for name in ("preln+final_cap", "preln"))
    torch.testing.assert_close(capped(tokens)[0], plain(tokens)[0] - plain(tokens)[0] ** 3 / 2700, rtol=0, atol=1e-3)
    with torch.no_grad():
        for model in (capped, plain):
            model.head.weight.mul_(1000)
    assert plain(tokens)[0].abs().max() > 1000
    assert 29 < capped(tokens)[0].abs().max() <= 30


@pytest.mark.parametrize("body", BODIES)
def test_zloss_adds_its_gradient_and_leaves_the_reported_loss_bare(body: str) -> None:
    """objective = CE + z·mean(log²Z), whose gradient on a logit is 2z·log Z·softmax/tokens; the loss is CE alone."""
    model, tokens, z = random_double("preln", body), random_tokens(extra=1), 0.3
    seen: list[Tensor] = []
    model.head_out.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.append(out))[1])
    x = model.hidden(tokens[:, :-1], 0)[0]  # type: ignore[arg-type]
    n = tokens[:, 1:].numel()
    objective, loss, log_z = model.loss_sums(x, model.head.matrix(), tokens[:, 1:], z) / n
    (unmoved,) = torch.autograd.grad(loss + log_z, x, retain_graph=True)
    assert not unmoved.any()
    seen[0].grad = None
    objective.backward()
    logits = seen[0].detach()
    p, targets = logits.softmax(-1), torch.nn.functional.one_hot(tokens[:, 1:], SHAPE.vocab_size)
    each = logits.logsumexp(-1)
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert log_z.item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert objective.item() == pytest.approx(cross_entropy.item() + z * each.square().mean().item(), rel=1e-6)
    expected = (p - targets + 2 * z * each[..., None] * p) / each.numel()
    torch.testing.assert_close(seen[0].grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("body", BODIES)
def test_layers_of_sigma_reparam_have_spectral_norm_g_after_training(body: str) -> None:
    """Never less, since |uᵀWv| ≤ ‖W‖; and within 1% after 30 forwards on weights that 20 steps have moved by 10%."""
    model, tokens = build("sigma_reparam", body).train(), random_tokens(extra=1)
    layers = {k: m for k, m in model.named_modules() if isinstance(m, SigmaReparam)}
    before = {k: m.weight.detach().clone() for k, m in layers.items()}

    def ratios() -> list[float]:
        """Spectral norm of what each layer applies, over g."""
        matrices = {k: m.eval()(torch.eye(m.weight.shape[1])).detach() for k, m in layers.items()}
        model.train()
        return [(torch.linalg.matrix_norm(w, 2) / layers[k].sigma_gain).item() for k, w in matrices.items()]

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        next_token_loss(model(tokens[:, :-1])[0], tokens[:, 1:])[0].backward()
        optimizer.step()
    for key, layer in layers.items():
        assert (layer.weight - before[key]).norm() > 0.1 * before[key].norm(), key
    lagging = ratios()
    assert min(lagging) > 1 - 1e-5
    for _ in range(30):
        model(tokens[:, :-1])
    assert ratios() == pytest.approx([1.0] * len(layers), abs=0.01)
    assert max(lagging) > 1.01, "power iteration had converged before: this test tells nothing apart"
