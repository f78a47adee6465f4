"""A probe on models that lrsweep did not build: values, what counts as a step, no trace left, and mistakes."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard

from lrsweep.config import ModelShape
from lrsweep.detect import DivergenceDetector
from lrsweep.errors import UserError
from lrsweep.model import GPT, init_weights
from lrsweep.model import ProbeLevel as Level
from lrsweep.probes import Probe
from lrsweep.probes.layers import find_places
from lrsweep.probes.pool import Pool
from lrsweep.schemes import find
from tests.probes.foreign_models import (
    HEADS,
    LAYERS,
    PARTS,
    WIDTH,
    FusedAttention,
    SeparateAttention,
    TinyGPT,
    assert_close,
    batch,
    expected,
    train_step,
)

STYLES = list(PARTS)


@pytest.mark.parametrize("style", STYLES)
def test_values_equal_those_of_plain_hooks(style: type[FusedAttention]) -> None:
    model, tokens = TinyGPT(style), batch()
    wanted = expected(model, tokens)
    with Probe(model, logits=True) as probe:
        train_step(model, tokens)
        assert_close(probe.read().values, wanted)


@pytest.mark.parametrize("body", ["gpt", "llama"])
def test_values_equal_those_that_lrsweeps_own_model_reports(body: str) -> None:
    """So figures of a foreign model stand in one table with a sweep's."""
    shape = ModelShape(n_layers=2, d_model=WIDTH, n_heads=HEADS, seq_len=10, vocab_size=31)
    model = GPT(find("qknorm"), body, shape)
    init_weights(model, 0)
    with Probe(model, logits=True) as probe:
        _, layers_NxS = model(batch(), Level.ALL)
        reading = probe.read()
    own = {
        (layer, site, stat): layers_NxS[layer, column].item()
        for layer in range(shape.n_layers)
        for column, (site, stat) in enumerate(model.stat_names)
    }
    assert_close(reading.values, {key: own[key] for key in reading.values})
    assert {site for _, site, _ in reading.values} == {"qkv", "proj", "fc1", "fc2", "attn"}


def test_micro_batches_add_up_to_their_step() -> None:
    """Batches of 1, 3 and 4 sequences are pooled over all their tokens, as the one batch of 8 is."""
    model, parts = TinyGPT(), [batch(size=n, seed=n) for n in (1, 3, 4)]
    wanted = expected(model, torch.cat(parts))
    with Probe(model, logits=True) as probe:
        train_step(model, *parts)
        assert_close(probe.read().values, wanted)


def test_a_reading_starts_the_next_one_anew() -> None:
    model, tokens = TinyGPT(), batch()
    wanted = expected(model, tokens)
    with Probe(model, logits=True) as probe:
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
            model.transformer["wte"].weight.mul_(100)
        train_step(model, tokens)
        large = probe.read()
        with torch.no_grad():
            model.transformer["wte"].weight.div_(100)
        train_step(model, tokens)
        assert_close(probe.read().values, wanted)
        assert probe.read().values == {}
    assert large.values.keys() == wanted.keys()


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_twice_counts_once(reentrant: bool) -> None:
    """Two micro-batches of different values. A reentrant checkpoint needs an input with gradients."""
    model, parts = TinyGPT(), [batch(size=2, seed=1), batch(size=2, seed=2)]
    wanted = expected(model, torch.cat(parts))
    model.transformer["wte"].register_forward_hook(lambda _m, _i, out: out.requires_grad_())
    model.checkpointing = reentrant
    with Probe(model, logits=True) as probe:
        train_step(model, *parts)
        assert_close(probe.read().values, wanted)


def test_evaluation_leaves_no_trace() -> None:
    model, tokens = TinyGPT(), batch()
    wanted = expected(model, tokens)
    with Probe(model, logits=True) as probe:
        train_step(model, tokens)
        with torch.no_grad():
            model(batch(seed=9))
        with torch.inference_mode():
            model(batch(seed=10))
        assert_close(probe.read().values, wanted)


def test_a_late_reading_is_the_one_that_the_call_before_began() -> None:
    """Three steps read late, beside their own plain readings: the same values, one call later, nothing twice."""
    model, steps = TinyGPT(), [batch(seed=i) for i in range(3)]
    wanted = [expected(model, tokens) for tokens in steps]
    with Probe(model, logits=True) as probe:
        found = []
        for tokens in steps:
            train_step(model, tokens)
            found.append(probe.read_late())
        found.append(probe.read_late())
        rest = probe.read_late()
    assert found[0] is None
    for late, values in zip(found[1:], wanted, strict=True):
        assert late is not None
        assert_close(late.values, values)
    assert rest is not None
    assert rest.values == {}


def test_a_late_reading_of_nothing_is_told() -> None:
    with Probe(TinyGPT()) as probe:
        assert probe.read_late() is None
        with pytest.raises(UserError, match="nothing was measured"):
            probe.read_late()


def test_logits_are_measured_at_every_so_many_readings() -> None:
    model = TinyGPT()
    measured = []
    with Probe(model, logits=3) as probe:
        for _ in range(7):
            train_step(model, batch())
            measured.append((0, "attn", "logit_max") in probe.read().values)
    assert measured == [True, False, False, True, False, False, True]
    with Probe(model) as probe:
        train_step(model, batch())
        assert {site for _, site, _ in probe.read().values} == {"qkv", "proj", "fc1", "fc2"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_activation_shows_and_is_gone_after_the_reading(bad: float) -> None:
    model = TinyGPT()
    clean = expected(model, batch())
    weight = model.transformer["h"][1].mlp.c_fc.bias
    with Probe(model, logits=True) as probe:
        before = weight[0].item()
        with torch.no_grad():
            weight[0] = bad
        train_step(model, batch(), batch())
        values = probe.read().values
        with torch.no_grad():
            weight[0] = before
        train_step(model, batch())
        assert_close(probe.read().values, clean)
    broken = {(1, site, stat) for site in ("fc1", "fc2") for stat in ("l2_rms", "l2_max")}
    assert {key for key, value in values.items() if not math.isfinite(value)} == broken
    if math.isinf(bad):
        assert values[1, "fc1", "l2_rms"] == values[1, "fc1", "l2_max"] == math.inf


def test_detached_nothing_is_left_and_attached_nothing_is_changed() -> None:
    """State, hooks and attributes; outputs and gradients bitwise."""

    def trained(model: TinyGPT) -> list[Tensor]:
        model.zero_grad()
        output = model(batch())
        output.logsumexp(-1).mean().backward()
        return [output, *(p.grad.clone() for p in model.parameters())]

    def trace(model: TinyGPT) -> list[object]:
        return [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ]

    model = TinyGPT()
    state, before, flag = list(model.state_dict()), trace(model), _flag()
    bare = trained(model)
    with Probe(model, logits=True) as probe:
        assert list(model.state_dict()) == state
        assert not list(model.buffers())
        probed = trained(model)
        probe.read()
    assert trace(model) == before
    assert _flag() == flag
    for others in (probed, trained(model)):
        for a, b in zip(bare, others, strict=True):
            assert torch.equal(a, b)


def _flag() -> bool:
    return torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint


def test_detaching_leaves_what_others_have_put_around_the_forward_since() -> None:
    model = TinyGPT()
    attention = model.transformer["h"][0].attn
    probe = Probe(model, logits=True)
    inner = attention.forward
    attention.forward = lambda x: inner(x) * 2
    outer, output = attention.forward, model(batch())
    probe.detach()
    assert attention.forward is outer
    assert torch.equal(model(batch()), output)


def test_two_probes_see_the_same_but_one_alone_watches_logits() -> None:
    model = TinyGPT()
    with Probe(model, logits=True) as first, Probe(model) as second:
        train_step(model, batch())
        values = first.read().values
        assert second.read().values == {key: value for key, value in values.items() if key[1] != "attn"}
        with pytest.raises(UserError, match="another probe"):
            Probe(model, logits=True)


@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, fully_shard, checkpoint_wrapper])
def test_a_wrapped_model(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    def watch() -> None:
        model = TinyGPT(SeparateAttention)
        wanted = expected(model, batch())
        wrapped = wrap(model)
        with Probe(wrapped, logits=True) as probe:
            assert probe.modules[1, "fc2"] == ("transformer.h.1.mlp.c_proj",)
            train_step(wrapped, batch())
            assert_close(probe.read().values, wanted)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    group = torch.distributed.group.WORLD
    try:
        watch()
    finally:
        torch.distributed.destroy_process_group()
        # DDP's reducer goes with the GIL held. If it were the last to know the group, it would wait for gloo's threads,
        # one of which may wait for the GIL to let go of a tensor. A group that goes by itself gives up the GIL first.
        gc.collect()
        del group


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_inside_wrappers(wrapper: str) -> None:
    """FSDP and checkpoint wrappers put a module and its name between a block and its parent."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.add_module(wrapper, module)

    model = TinyGPT()
    names = [place.names for place in find_places(model, None)]
    blocks = model.transformer["h"]
    for i, block in enumerate(blocks):
        block.mlp.c_proj = Wrapper(block.mlp.c_proj)
        blocks[i] = Wrapper(block)
    assert [place.names for place in find_places(Wrapper(model), None)] == names


def test_flat_names_and_the_detector() -> None:
    model = TinyGPT(layers=11)
    with Probe(model) as probe:
        train_step(model, batch())
        reading = probe.read()
    flat = reading.flat()
    assert len(flat) == 11 * 4 * 2
    assert flat["layer10/fc2/l2_rms"] == reading[10, "fc2", "l2_rms"]
    assert list(flat)[:2] == ["layer00/qkv/l2_rms", "layer00/qkv/l2_max"]
    assert DivergenceDetector().update(1, 3.0, signals=flat).kind == "stable"


class Unknown(nn.Module):
    """A block with names of its own, whose attention returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleDict({"mix": Mix(), "up": nn.Linear(8, 8)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage["up"](stage["mix"](x)[0])
        return x


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.left(x), self.right(x[:, :2])
        return (left @ left.transpose(-1, -2)).softmax(-1) @ left, right


def run_unknown(sites: dict[str, list[str]]) -> dict[tuple[int, str, str], float]:
    model = Unknown()
    with Probe(model, sites, logits="attn" in sites) as probe:
        model(torch.randn(2, 4, 8)).sum().backward()
        return probe.read().values


def test_a_mapping_names_the_layers_of_an_unknown_model() -> None:
    values = run_unknown({"left": [r"stages\.\d+\.mix\.left"], "out": ["stages.1.up"], "attn": [r"stages\.\d\.mix"]})
    assert {key[:2] for key in values} == {(0, "left"), (1, "left"), (1, "out"), (0, "attn"), (1, "attn")}
    model, x = Unknown(), torch.randn(2, 4, 8)
    with Probe(model, {"first": ["stages.0.mix.left"]}) as probe:
        model(x).sum().backward()
        norms = model.stages[0]["mix"].left(x).norm(dim=-1)
        reading = probe.read()
    assert reading[0, "first", "l2_max"] == pytest.approx(norms.max().item(), rel=1e-6)
    assert reading[0, "first", "l2_rms"] == pytest.approx(norms.square().mean().sqrt().item(), rel=1e-6)


def without_fc2() -> TinyGPT:
    model = TinyGPT()
    for block in model.transformer["h"]:
        block.mlp.other = block.mlp.c_proj
        del block.mlp.c_proj
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Probe(Unknown()), ["qkv, proj, fc2 not found", "stages.N.mix.left", "Probe(model, {"]),
        (lambda: Probe(without_fc2()), ["fc2 not found beside attn, fc1, proj, qkv", "mlp.other"]),
        (lambda: Probe(nn.ReLU()), ["no linear layers"]),
        (lambda: Probe(TinyGPT(), {"qkv": ["attn"]}), ["no module is named 'attn'", "transformer.h.N.attn.c_attn"]),
        (lambda: Probe(TinyGPT(), {"qkv": "attn"}), ["a list", "'attn'"]),
        (lambda: Probe(TinyGPT(), {"fc2": [r".*mlp\.c_proj"]}, logits=True), ["logits", "'attn'"]),
        (lambda: Probe(nn.ModuleDict({"a": TinyGPT(), "b": TinyGPT()})), ["2 stacks", "a.transformer.h", "b.tran"]),
        (lambda: Probe(TinyGPT().to("meta")), ["no weights yet", "c_attn"]),
        (lambda: run_unknown({"mix": [r"stages\.\d\.mix"]}), ["stages.0.mix returns a tuple"]),
        (
            lambda: run_unknown({"both": [r".*left", r".*right"]}),
            ["stages.0.mix.left, stages.0.mix.right see different"],
        ),
    ],
)
def test_mistakes_are_told_in_one_line(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_model_that_moves_after_its_probe_is_told() -> None:
    place = find_places(TinyGPT(), None)[0]
    with pytest.raises(UserError, match=r"c_attn computes on meta.*on cpu: attach it after.*device='meta'"):
        Pool(place, torch.device("cpu")).add_output(0, torch.empty(2, 3, device="meta"))


def test_a_first_reading_of_nothing_is_told() -> None:
    model = TinyGPT()
    with Probe(model) as probe:
        with torch.no_grad():
            model(batch())
        with pytest.raises(UserError, match=r"nothing was measured.*with gradients.*compiler\.reset"):
            probe.read()


def test_a_layer_that_the_first_step_left_out_is_named() -> None:
    model = TinyGPT()
    model.transformer["h"][1].forward = lambda x: x
    with Probe(model) as probe:
        train_step(model, batch())
        with pytest.warns(UserWarning, match="nothing was measured") as warned:
            reading = probe.read()
    assert [str(w.message) for w in warned] == ["nothing was measured at transformer.h.1." + n for n in _LINEARS]
    assert {layer for layer, _, _ in reading.values} == {0}


_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_attention_by_a_kernel_of_its_own_is_told() -> None:
    """Neither of the two functions that the probe looks for."""

    class Sigmoid(FusedAttention):
        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-1, -2)).tril().sigmoid() @ v

    model = TinyGPT(Sigmoid)
    with Probe(model, logits=True) as probe:
        train_step(model, batch())
        with pytest.raises(
            UserError, match=r"h\.0\.attn or any other.*neither scaled_dot_product_attention nor softmax"
        ):
            probe.read()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_weights_and_is_not_measured(copied: Callable[[TinyGPT], TinyGPT]) -> None:
    model = TinyGPT()
    wanted = expected(model, batch())
    with Probe(model, logits=True) as probe:
        twin = copied(model)
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(1.1)
        plain = TinyGPT()
        plain.load_state_dict(twin.state_dict())
        assert torch.equal(twin(batch()), plain(batch()))
        train_step(model, batch())
        assert_close(probe.read().values, wanted)


def test_layers_are_counted_once() -> None:
    assert len(find_places(TinyGPT(), None)) == LAYERS * 5
