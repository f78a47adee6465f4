"""The page on integrations: every block runs, and what it says of keys and versions holds; and every example runs."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lrsweep.integrations import StabilityMonitor
from tests.integrations.tiny import SANE_LR, network, sgd

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M))
RUNNABLE = [
    pytest.param(title, block, id=f"{title} {i}")
    for title, text in SECTIONS.items()
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M))
]
UNINSTALLED = [
    pytest.param(block, id=title)
    for title, text in SECTIONS.items()
    for block in re.findall(r"^```python notest\n(.*?)^```", text, flags=re.S | re.M)
]


class Model(nn.Module):
    """Tokens in, the loss of guessing each one's successor out."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, tokens: Tensor) -> Tensor:
        return cross_entropy(self.network(tokens), (tokens + 1) % 64)


def loop() -> dict[str, Any]:
    """What a loop of one's own has."""
    model = Model()
    loader = list(torch.randint(64, (40, 64), generator=torch.Generator().manual_seed(0)))
    return {"torch": torch, "model": model, "optimizer": sgd(model, SANE_LR), "loader": loader}


def transformers_trainer() -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return {
        "trainer": Trainer(
            model=LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, use_cache=False)),
            args=TrainingArguments(output_dir=".", max_steps=5, use_cpu=True, disable_tqdm=True, report_to=[]),
            train_dataset=[{"input_ids": row, "labels": row} for row in torch.randint(64, (64, 16))],
        )
    }


def lightning_trainer() -> dict[str, Any]:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.model(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self, SANE_LR)

    loader = torch.utils.data.DataLoader(loop()["loader"], batch_size=None)
    return {"Trainer": pl.Trainer, "module": Module(), "loader": loader}


def fabric_loop() -> dict[str, Any]:
    from lightning.fabric import Fabric

    names, fabric = loop(), Fabric(accelerator="cpu", devices=1)
    names["model"], names["optimizer"] = fabric.setup(names["model"], names["optimizer"])
    return {**names, "fabric": fabric}


def accelerate_loop() -> dict[str, Any]:
    from accelerate import Accelerator

    names, accelerator = loop(), Accelerator(cpu=True, gradient_accumulation_steps=2)
    names["model"], names["optimizer"] = accelerator.prepare(names["model"], names["optimizer"])
    return {**names, "accelerator": accelerator}


BEFORE: dict[str, Callable[[], dict[str, Any]]] = {
    "A plain loop": loop,
    "Hugging Face Trainer": transformers_trainer,
    "Lightning Trainer": lightning_trainer,
    "Lightning Fabric": fabric_loop,
    "Accelerate": accelerate_loop,
}
"""What the reader of each section has already."""


@pytest.mark.parametrize(("title", "block"), RUNNABLE)
def test_the_block_runs_and_judges(title, block, tmp_path, monkeypatch, judged):
    monkeypatch.chdir(tmp_path)
    names = BEFORE[title]()
    exec(block, names)
    monitor = names.get("monitor") or names["callback"].monitor
    assert monitor.verdict.kind == "stable"
    assert len(judged) >= 5


@pytest.mark.parametrize("block", UNINSTALLED)
def test_the_block_of_a_trainer_that_is_not_installed_names_what_there_is(block):
    (statement,) = (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom))
    module = ROOT / (str(statement.module).replace(".", "/") + ".py")
    defined = {getattr(node, "name", None) for node in ast.parse(module.read_text(encoding="utf-8")).body}
    assert {alias.name for alias in statement.names} <= defined


def test_each_trainer_has_a_section_a_row_and_an_example():
    modules = {path.stem for path in (ROOT / "lrsweep" / "integrations").glob("*.py")}
    shared = {"__init__", "extras", "lagged", "monitor", "ranks", "wrapping"}
    assert set(re.findall(r"\| `\.(\w+)` \|", PAGE)) == modules - shared
    assert len(SECTIONS) == len(modules - shared) + 3  # a plain loop, what all have in common, limits
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {re.sub(r"_(loop|train|trainer|pretrain)$", "", name) for name in examples} == {*(modules - shared), "plain"}


def test_the_keys_are_those_of_the_monitor():
    monitor = StabilityMonitor()
    monitor.update(1, 3.0)
    assert set(re.findall(r"^\| `(lrsweep/\w+)` \|", PAGE, flags=re.M)) == set(monitor.metrics())


EXAMPLES = [
    ("plain_loop", "3"),
    ("transformers_trainer", "1e-3"),
    ("lightning_trainer", "3"),
    ("fabric_loop", "3"),
    ("accelerate_loop", "3"),
]


@pytest.mark.parametrize(("name", "sane"), EXAMPLES)
def test_the_example_runs_and_stops_where_it_says(name, sane, monkeypatch, capsys):
    outcomes = []
    for flags in ([], ["--lr", sane]):
        monkeypatch.setattr(sys, "argv", [name, *flags])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        outcomes += re.findall(r"^after step (\d+): (\w+)", capsys.readouterr().out, flags=re.M)
    (stopped, broken), (last, whole) = outcomes
    assert broken in ("diverged", "nonfinite")
    assert whole == "stable"
    assert int(stopped) < int(last) == 100
