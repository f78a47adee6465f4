"""``python -m lrsweep.probe_bench``: what a Probe costs a training step of transformers' Llama.

Every variant trains a model of its own, all in one process. Within a round each runs a few steps, right after another
and in an order that turns from round to round; the figure is the median over rounds of the ratio to the bare step, with
a bootstrap interval.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
import types
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from lrsweep.bench.rounds import paired_rounds, synchronize
from lrsweep.probes import Probe
from lrsweep.store import write_text
from lrsweep.sweep.machine import provenance
from lrsweep.sweep.plan import resolve_device

VOCABULARY = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What to time."""

    layers: int = 12
    """Layers of the Llama; 12 with the default width are 134M parameters."""
    width: int = 768
    """Model width, in heads of 64."""
    seq_len: int = 1024
    """Tokens of a sequence."""
    batch_size: int = 32
    """Sequences of a batch."""
    rounds: int = 30
    """Paired rounds."""
    steps: int = 10
    """Steps of a variant in a round."""
    variants: tuple[str, ...] = ("norms", "logits", "item")
    """What to time beside the bare model: a Probe, one with logits at every reading, hooks that call ``.item()``."""
    compile: bool = True
    """Whether to compile the models."""
    out: Path | None = None
    """JSON file to write."""


def build_llama(bench: Bench, device: str) -> nn.Module:
    """Transformers' Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=bench.width,
        intermediate_size=64 * math.ceil(8 * bench.width / 3 / 64),
        num_hidden_layers=bench.layers,
        num_attention_heads=bench.width // 64,
        max_position_embeddings=bench.seq_len,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(device).train()


class ItemHooks:
    """The same norms as hooks are often written: each value fetched as it is computed."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, tuple[float, float]] = {}
        for name, module in model.named_modules():
            if ".layers." in name and isinstance(module, nn.Linear):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def measure(module: nn.Module, args: Any, output: Tensor) -> None:
            norms = output.detach().float().norm(dim=-1)
            self.values[name] = norms.square().mean().sqrt().item(), norms.max().item()

        return measure


class Trainee:
    """A model, its optimizer and its step."""

    def __init__(self, bench: Bench, device: str, attach: Callable[[nn.Module], object]) -> None:
        self.model = build_llama(bench, device)
        self.attached = attach(self.model)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self._device = device

        def loss(tokens: Tensor) -> Tensor:
            logits = self.model(input_ids=tokens[:, :-1]).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

        # The compiler keeps its results by code object: one of its own, or a bare model may run a probed one's graph.
        own = types.FunctionType(loss.__code__.replace(), globals(), "loss", None, loss.__closure__)
        self.loss: Callable[[Tensor], Tensor] = torch.compile(own) if bench.compile else own

    def autocast(self) -> AbstractContextManager[object]:
        """To bf16 on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self._device == "cuda" else nullcontext()

    def step(self, tokens: Tensor) -> None:
        """One step of AdamW."""
        with self.autocast():
            loss = self.loss(tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Step time of one variant against the bare model's."""

    step_ms: float
    """Median."""
    ratio: float
    """Median over paired rounds."""
    low: float
    """Lower end of its 95% bootstrap interval."""
    high: float
    """Upper end."""


def cost(seconds: list[float], bare: list[float], steps: int) -> Cost:
    """Summary of paired times."""
    ratios = np.array(seconds) / np.array(bare)
    resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975))
    return Cost(
        step_ms=1e3 * statistics.median(seconds) / steps,
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
    )


def compiled_against_eager(trainee: Trainee, tokens: Tensor) -> float:
    """Largest relative difference of what the model measures on one batch, compiled and not."""
    probe = trainee.attached
    assert isinstance(probe, Probe)
    with trainee.autocast():
        trainee.loss(tokens)
        compiled = probe.read().values
        with torch.compiler.set_stance("force_eager"):
            trainee.loss(tokens)
    eager = probe.read().values
    assert compiled.keys() == eager.keys()
    return max(abs(compiled[key] / eager[key] - 1) for key in eager)


VARIANTS: dict[str, Callable[[nn.Module], object]] = {
    "bare": lambda model: None,
    "norms": Probe,
    "logits": lambda model: Probe(model, logits=True),
    "item": ItemHooks,
}
"""What is attached to the model, by name."""


def main(bench: Bench) -> None:
    """Time the variants, print a line for each, and save them if asked to."""
    device = resolve_device("auto")
    tokens = torch.randint(VOCABULARY, (bench.batch_size, bench.seq_len + 1), device=device)
    if device == "cpu":
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # That .item() breaks the graph is what its variant is there to show.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    trainees = {name: Trainee(bench, device, VARIANTS[name]) for name in dict.fromkeys(("bare", *bench.variants))}
    probed = {name: trainee for name, trainee in trainees.items() if isinstance(trainee.attached, Probe)}

    def run(name: str, every: int = 1, late: bool = False) -> None:
        trainee = trainees[name]
        for step in range(1, bench.steps + 1):
            trainee.step(tokens)
            if isinstance(trainee.attached, Probe) and step % every == 0:
                trainee.attached.read_late() if late else trainee.attached.read()

    variants: dict[str, Callable[[], object]] = {n: partial(run, n) for n in trainees if n not in probed}
    for name in probed:
        variants[f"{name}, read every step"] = partial(run, name)
        variants[f"{name}, read late every step"] = partial(run, name, late=True)
        if bench.steps > 1:
            variants[f"{name}, read every {bench.steps} steps"] = partial(run, name, bench.steps)

    differences = {}
    for name in trainees:
        began = time.perf_counter()
        run(name)
        synchronize(device)
        print(f"{name}: first {bench.steps} steps {time.perf_counter() - began:.0f} s", flush=True)
    for name, trainee in probed.items():
        differences[name] = compiled_against_eager(trainee, tokens)
        print(f"{name}: compiled against eager values, largest relative difference {differences[name]:.2g}", flush=True)
    seconds = paired_rounds(variants, bench.rounds, device)
    costs = {label: cost(found, seconds["bare"], bench.steps) for label, found in seconds.items()}
    for label, c in costs.items():
        print(f"{label:<32}{c.step_ms:8.2f} ms  {c.ratio:.4f} ({c.low:.4f} to {c.high:.4f})", flush=True)
    if bench.out is not None:
        record = {
            **provenance(),
            "parameters": sum(p.numel() for p in trainees["bare"].model.parameters()),
            "compiled_against_eager": differences,
            "costs": {label: asdict(c) for label, c in costs.items()},
        }
        write_text(bench.out, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
