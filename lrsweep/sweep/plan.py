"""From what a user asks for to the list of trials: schemes × bodies × sizes × seeds × learning rates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lrsweep.config import (
    TRAIN_FLAGS,
    DataConfig,
    SizePreset,
    SweepConfig,
    TrainConfig,
    TrialSpec,
    check_lrs,
    find_body,
    find_size,
)
from lrsweep.corpus import Corpus, load_corpus
from lrsweep.errors import UserError
from lrsweep.schemes import Scheme, all_schemes, find

Device = Literal["cpu", "cuda"]
ALL = "all"
"""Name for every registered scheme."""
DEFAULT_SIZE: dict[Device, str] = {"cpu": "0.2m", "cuda": "10m"}
"""The size that fits a machine with this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a sweep will do."""

    config: SweepConfig
    """What was asked for, with names resolved."""
    specs: tuple[TrialSpec, ...]
    """The trials, those of one scheme together."""
    corpora: dict[str, Corpus]
    """Tokens of each size."""
    epsilon: dict[str, float]
    """ε of each size, in nats."""
    out: Path
    """Result folder, absolute."""
    device: Device
    """Where the trials run."""

    def frozen_fields(self) -> dict[str, Any]:
        """What must agree for two runs to share a folder, by dotted name; the axes of the sweep may grow."""
        fixed: dict[str, Any] = {"device": self.device}
        for spec in self.specs:
            train = spec.train.decides()
            prescribed = {name for name, _ in spec.scheme.training}  # These are one scheme's, the others all schemes'.
            groups = {
                f"train.{spec.size}": {k: v for k, v in train.items() if k not in prescribed},
                f"train.{spec.size}.{spec.scheme.name}": {k: v for k, v in train.items() if k in prescribed},
                f"shape.{spec.size}": asdict(spec.shape),
                f"data.{spec.size}": {"tokenizer": spec.data.tokenizer, "hash": spec.data.data_hash},
                f"scheme.{spec.scheme.name}": spec.scheme.build_fields(),
            }
            for group, values in groups.items():
                fixed |= {f"{group}.{name}": value for name, value in values.items()}
        return fixed


def resolve_device(wanted: str) -> Device:
    """``auto`` is a GPU where there is one. UserError if ``cuda`` is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda: no CUDA GPU is visible; use --device cpu, or see `lrsweep doctor`")
    return "cuda" if available and wanted != "cpu" else "cpu"


def check_gpus_per_trial(config: SweepConfig, device: Device, batch_sizes: Iterable[int]) -> None:
    """UserError if ``config`` cannot train a trial on that many GPUs, or share batches of these sizes among them."""
    import torch

    n = config.gpus_per_trial
    if n < 1:
        raise UserError(f"--gpus-per-trial must be at least 1, got {n}")
    if n == 1:
        return
    if config.local:
        raise UserError(f"--gpus-per-trial {n} needs Ray; leave out --local")
    for batch_size in batch_sizes:
        if batch_size % (n * (config.micro_batch or 1)):
            micro = "" if config.micro_batch is None else f" times --micro-batch {config.micro_batch}"
            raise UserError(
                f"--gpus-per-trial {n}{micro} does not divide --batch-size {batch_size}; change one of them"
            )
    if device == "cpu":
        return
    if config.jobs is not None and config.jobs > 1:
        raise UserError(f"--gpus-per-trial {n} takes whole GPUs, --jobs {config.jobs} shares them; leave out --jobs")
    if config.ray_address is None and n > (n_gpus := torch.cuda.device_count()):
        raise UserError(f"--gpus-per-trial {n}: this machine has {n_gpus}; lower it, or name a cluster: --ray-address")


def find_schemes(names: tuple[str, ...]) -> tuple[Scheme, ...]:
    """The schemes of these names, each once, ``all`` being every registered one."""
    if not names:
        raise UserError("--arch is missing; name one or more schemes (see `lrsweep schemes`), or all")
    found = [all_schemes() if name.casefold() == ALL else (find(name),) for name in names]
    return tuple({scheme.name: scheme for schemes in found for scheme in schemes}.values())


def canonical(name: str) -> str:
    """How the resolved config writes a name of ``--arch``: as registered, but a file's scheme with its file."""
    if name.casefold() == ALL:
        return ALL
    path, colon, _ = name.rpartition(".py:")
    return f"{path}{colon}{find(name).name}"


def train_config(scheme: Scheme, size: SizePreset, given: dict[str, Any], device: Device) -> TrainConfig:
    """How ``scheme`` is trained at ``size``: the preset, what the row prescribes, and over both what was asked for.

    Raises:
        UserError: a flag contradicts a modifier, whose name would then lie.
    """
    prescribed = dict(scheme.training)
    if "+independent_wd" in scheme.name and given.get("decay_mode") == "decoupled":
        raise UserError(f"--decay-mode decoupled contradicts --arch {scheme.name}; leave one of them out")
    return size.train_config(**(prescribed | given), precision="bf16" if device == "cuda" else "fp32")


def make_plan(config: SweepConfig) -> Plan:
    """Resolve names, presets and data.

    Raises:
        UserError: anything wrong with what was asked for; nothing has been written but the token cache.
    """
    schemes = find_schemes(config.arch)
    bodies = tuple(dict.fromkeys(map(find_body, config.body)))
    if not bodies:
        raise UserError("--body is empty; use gpt, llama or both")
    if config.lrs:
        check_lrs(config.lrs)
    if config.seeds is not None and config.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {config.seeds}")
    if config.search is not None and not config.search > 1:
        raise UserError(
            f"--search must be above 1, the largest hi/lo of LR50's interval, for example 1.5; got {config.search:g}"
        )
    if config.jobs is not None and config.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {config.jobs}")
    if config.epsilon is not None and not config.epsilon > 0:
        raise UserError(f"--epsilon must be above 0 nats, got {config.epsilon:g}")
    sizes_asked = tuple(map(find_size, config.size))
    device = resolve_device(config.device)
    sizes = tuple({s.name: s for s in sizes_asked or (find_size(DEFAULT_SIZE[device]),)}.values())
    names = replace(
        config,
        arch=tuple(dict.fromkeys(map(canonical, config.arch))),
        body=bodies,
        size=tuple(s.name for s in sizes),
    )
    out = Path(config.out or Path("results") / default_name(names, schemes)).absolute()
    check_writable(out)

    specs: list[TrialSpec] = []
    corpora: dict[str, Corpus] = {}
    epsilon: dict[str, float] = {}
    for size in sizes:
        given = {n: getattr(config, n) for n in TRAIN_FLAGS if getattr(config, n) is not None}
        trains = {scheme.name: train_config(scheme, size, given, device) for scheme in schemes}
        check_gpus_per_trial(config, device, {train.batch_size for train in trains.values()})
        train = trains[schemes[0].name]
        corpus = _load(size, config, train.batch_size, train.heldout_tokens)
        data = DataConfig(
            path=config.data,
            text_column=config.text_column,
            tokenizer=corpus.tokenizer,
            data_hash=corpus.data_hash,
        )
        corpora[size.name] = corpus
        lrs = check_lrs(config.lrs or size.lrs)
        if config.search is not None and len(lrs) < 2:
            raise UserError("--search needs LRs to search between; give --lrs a lowest and a highest at least")
        by_bytes = corpus.tokenizer == "bytes"
        epsilon[size.name] = config.epsilon or (0.25 if by_bytes else 0.5)
        specs.extend(
            TrialSpec(
                scheme=scheme,
                body=body,
                size=size.name,
                shape=replace(size.shape, vocab_size=corpus.vocab_size),
                train=trains[scheme.name],
                data=data,
                device=device,
                lr=lr,
                seed=seed,
            )
            for body in bodies
            for scheme in schemes
            for seed in range(config.seeds or size.seeds)
            for lr in lrs
        )
    return Plan(config=names, specs=tuple(specs), corpora=corpora, epsilon=epsilon, out=out, device=device)


def _load(size: SizePreset, config: SweepConfig, batch_size: int, heldout_tokens: int) -> Corpus:
    shape = size.shape
    return load_corpus(
        config.data,
        tokenizer="bytes" if size.byte_tokens else shape.vocab_size,
        scale="large" if shape.vocab_size > 4096 else "small",
        text_column=config.text_column,
        min_train_tokens=batch_size * shape.seq_len + 1,
        min_heldout_tokens=min(heldout_tokens, 8 * shape.seq_len) + 1,
    )


def default_name(config: SweepConfig, schemes: tuple[Scheme, ...]) -> str:
    """Folder name of a sweep whose names are resolved; a modifier stands behind a dot, so that + only lists."""
    archs = ALL if config.arch == (ALL,) else "+".join(s.name.replace("+", ".") for s in schemes)
    name = "-".join([archs, "+".join(config.body), "+".join(config.size)])
    return re.sub(r"[^\w.+-]", "_", name)


def check_writable(out: Path) -> None:
    """UserError if ``out`` is a file, or it or its nearest existing parent cannot be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    parent = next(p for p in (out, *out.parents) if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(f"--out {out}: no permission to write in {parent}; name another folder")
