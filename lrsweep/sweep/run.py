"""A whole sweep: announce, resume, execute, record, report."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lrsweep.config import SweepConfig, TrialSpec
from lrsweep.errors import UserError
from lrsweep.report import Report, write_report
from lrsweep.store import SCHEMA_VERSION, ResultStore, TrialRow
from lrsweep.sweep.display import Display, duration
from lrsweep.sweep.machine import fit_memory, gpu_names, program, provenance
from lrsweep.sweep.plan import Plan
from lrsweep.sweep.search import FrontierSearch
from lrsweep.train import Progress

_STARTUP_S = {"cpu": 12.0, "cuda": 45.0}
"""Start of Ray and its workers, compilation, held-out losses and the report; seen on 2 cores and on one H200."""


def default_jobs(plan: Plan) -> int:
    """Trials at a time: one a core on a CPU, or as many cores as it has processes; one on each GPU.

    On an H200 two or four captured 10M steps side by side ran at 0.94 to 0.95 of one's rate in total.
    """
    n_cores = len(os.sched_getaffinity(0))
    return plan.config.jobs or (max(1, n_cores // plan.config.gpus_per_trial) if plan.device == "cpu" else 1)


def remaining(plan: Plan, rows: Mapping[str, TrialRow]) -> list[TrialSpec]:
    """Trials that have no whole record among ``rows``; those that ended in an error count as not run."""
    done = {trial for trial, row in rows.items() if row.verdict != "error"}
    return [spec for spec in plan.specs if spec.trial not in done]


def check_same_sweep(plan: Plan, store: ResultStore) -> None:
    """UserError if the folder holds a sweep whose fixed fields differ; its axes may differ."""
    manifest = store.read_manifest()
    if manifest is None:
        if (store.root / "steps").exists():
            raise UserError(f"--out {store.root} has results but no manifest.json; restore it or name another folder")
        return
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"--out {store.root} was written by another version of lrsweep; name another folder")
    old = manifest["frozen"]
    new = json.loads(json.dumps(plan.frozen_fields()))
    changed = [f"{k} {old[k]!r} → {new[k]!r}" for k in new if k in old and old[k] != new[k]]
    if changed:
        raise UserError(
            f"--out {store.root} holds a sweep of another configuration: {', '.join(changed)}; "
            "keep the old values, or name another folder with --out"
        )


def _write_manifest(plan: Plan, store: ResultStore, *, started: str, finished: str | None, jobs: int) -> None:
    """Write the manifest; the axes and the runs of an earlier one in the folder are kept and added to."""
    old = store.read_manifest() or {}
    runs = [run for run in old.get("runs", []) if run["started"] != started]
    run = {
        **provenance(),
        "started": started,
        "finished": finished,
        "jobs": jobs,
        "gpus_per_trial": plan.config.gpus_per_trial,
    }
    config = asdict(plan.config)
    for axis, values in old.get("config", {}).items():
        if axis in ("arch", "body", "size"):
            config[axis] = list(dict.fromkeys([*values, *config[axis]]))
    by_size = old.get("sizes", {})
    for spec in plan.specs:
        entry = by_size.setdefault(spec.size, {"lrs": [], "seeds": []})
        entry["lrs"] = sorted({*entry["lrs"], spec.lr})
        entry["seeds"] = sorted({*entry["seeds"], spec.seed})
        train = asdict(spec.train)
        common = entry.get("train", train)  # What the schemes are trained alike in; "frozen" has each in full.
        entry["train"] = {name: value for name, value in common.items() if value == train[name]}
        entry |= {"shape": asdict(spec.shape), "epsilon": plan.epsilon[spec.size]}
    data = {
        size: {
            "path": plan.config.data,
            "source": corpus.source,
            "hash": corpus.data_hash,
            "tokenizer": corpus.tokenizer,
            "train_tokens": len(corpus.train_tokens),
            "heldout_tokens": len(corpus.heldout_tokens),
            "unigram_entropy": corpus.unigram_entropy,
        }
        for size, corpus in plan.corpora.items()
    }
    store.write_manifest(
        {
            "schema_version": SCHEMA_VERSION,
            **run,
            "config": config,
            "sizes": by_size,
            "data": old.get("data", {}) | data,
            "schemes": old.get("schemes", {}) | {s.scheme.name: asdict(s.scheme) for s in plan.specs},
            "frozen": old.get("frozen", {}) | plan.frozen_fields(),
            "runs": [*runs, run],
        }
    )


@contextlib.contextmanager
def _sole_writer(root: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder; the lock goes with the process, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {root}: another sweep is writing there; wait for it or name another folder"
            ) from None
        yield


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that Ray is stopped on the way out."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def estimate_seconds(specs: Sequence[TrialSpec], jobs: int, gpus_per_trial: int = 1) -> float:
    """Seconds that ``specs`` should take, from a few real steps on one process's share of a batch.

    On a CPU every scheme, body and size is timed, wide models on a part of the batch. On a GPU it is one scheme of
    each size, its step compiled and captured as a worker's is; what that compiles is kept on disk for the workers.
    """
    import numpy as np
    import torch

    from lrsweep.model import ProbeLevel
    from lrsweep.train import Engine, EngineKey
    from lrsweep.train.trial import CPU_THREADS

    on_cpu = specs[0].device == "cpu"
    if on_cpu:
        torch.set_num_threads(CPU_THREADS)
    seconds = 0.0
    timed: dict[tuple[str, ...], float] = {}
    for spec in specs:
        which = spec.model if on_cpu else (spec.size,)
        if which not in timed:
            batch = share = spec.train.batch_size // gpus_per_trial
            micro = spec.train.micro_batch
            n_timed = 2 if on_cpu or micro else 20
            if on_cpu:
                batch, micro = max(1, min(batch, 1024 // spec.shape.seq_len)), None
            train = replace(spec.train, batch_size=batch, micro_batch=micro, report_every=n_timed)
            key = replace(EngineKey.of(spec), train=train)
            engine = Engine(key)
            engine.reset(0)
            tokens = np.zeros((n_timed, batch, spec.shape.seq_len + 1), dtype=np.int32)
            engine.run(tokens[:1], [0.0], [ProbeLevel.ALL])
            began = time.perf_counter()
            engine.run(tokens, [0.0] * n_timed, [ProbeLevel.ALL] * n_timed)
            timed[which] = (time.perf_counter() - began) / n_timed * share / batch
            del engine
        seconds += timed[which] * spec.train.steps
    if not on_cpu:
        torch.cuda.empty_cache()
    n_workers = jobs if on_cpu else jobs * max(1, torch.cuda.device_count() // gpus_per_trial)
    return seconds / n_workers + _STARTUP_S[specs[0].device]


def announce(plan: Plan, todo: Sequence[TrialSpec], n_done: int, jobs: int, console: Console) -> None:
    """Say what will run, where it goes, how long it should take and how to resume."""
    config = plan.config

    def say(name: str, text: str) -> None:
        console.print(f"{name:>8}  {text}", highlight=False, markup=False, soft_wrap=True)

    schemes, seeds = ", ".join(config.arch), sorted({s.seed for s in plan.specs})
    for size in config.size:
        specs = [s for s in plan.specs if s.size == size]
        lrs, spec, corpus = sorted({s.lr for s in specs}), specs[0], plan.corpora[size]
        shape, train = spec.shape, next((s.train for s in todo if s.size == size), spec.train)
        at_once = "" if train.micro_batch is None else f" ({train.micro_batch} sequences at once)"
        n_trials = f"{'at most ' if config.search else ''}{len(specs)} trials"
        say("sweep", f"{schemes} on {' and '.join(config.body)}, size {size}: {n_trials}")
        say("LRs", f"{' '.join(f'{lr:g}' for lr in lrs)}; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}")
        say(
            "proxy",
            f"{shape.n_layers} layers, width {shape.d_model}, {shape.n_heads} heads, {shape.seq_len} tokens; "
            f"{train.steps} steps of {train.batch_size * shape.seq_len:,} tokens{at_once}, "
            f"{train.warmup_steps} of warm-up, {train.precision}",
        )
        say("text", f"{corpus.source}; {len(corpus.train_tokens):,} tokens ({corpus.tokenizer})")
    if config.search:
        say("search", f"until each LR50 is known within a factor of {config.search:g}; the LRs above are its range")
    for scheme in {s.scheme.name: s.scheme for s in plan.specs if s.scheme.training}.values():
        spec = next(s for s in plan.specs if s.scheme == scheme)
        say("method", f"{scheme.name}: " + ", ".join(f"{n} {getattr(spec.train, n)}" for n, _ in scheme.training))
    say("machine", _who_trains(plan, jobs))
    say("results", str(relative(plan.out)))
    if n_done:
        of_all = "" if config.search else f" of {len(plan.specs)}"
        say("resume", f"{n_done}{of_all} trials are finished and not run again")
    else:
        say("resume", "interrupt at any time; the same command goes on where it stopped")


def _who_trains(plan: Plan, jobs: int) -> str:
    """The machine, and how many trials share it or how many parts of it one trial takes."""
    at_a_time, together = f"{jobs} trial{'s' if jobs > 1 else ''} at a time", plan.config.gpus_per_trial
    if plan.device == "cpu":
        return f"CPU, {at_a_time}" + (f", each on {together} processes" if together > 1 else "")
    return f"{gpu_names()}, " + (f"one trial on {together}" if together > 1 else f"{at_a_time} on each")


def relative(path: Path) -> Path:
    """``path`` as seen from the current folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def run_sweep(plan: Plan, console: Console) -> Report | None:
    """Run what is missing of ``plan`` and report on all that its folder holds; None for a dry run.

    Raises:
        UserError: the folder holds another sweep, or is in use, or memory is short; nothing has been changed then.
        KeyboardInterrupt: as it came; finished trials are kept and Ray is stopped.
    """
    store = ResultStore(plan.out)
    check_same_sweep(plan, store)
    together, rows = plan.config.gpus_per_trial, store.rows()
    _, todo = _to_run(plan, rows)
    jobs = 1 if plan.config.local else min(default_jobs(plan), max(1, len(todo)))
    plan = _fit(plan, todo, jobs)
    search, todo = _to_run(plan, rows)  # The same, with micro-batches.
    n_done = len(plan.specs) - len(todo) if search is None else search.n_ended
    announce(plan, todo, n_done, jobs, console)
    if todo:
        with console.status("timing a few steps"):
            seconds = estimate_seconds(todo, jobs, together)
        console.print(f"    time  {'at most' if search else 'about'} {duration(seconds)}", highlight=False)
    if plan.config.dry_run:
        return None
    console.print()
    with _sole_writer(plan.out), _terminate_like_ctrl_c():
        started = _now()
        _write_manifest(plan, store, started=started, finished=None, jobs=jobs)
        if todo:
            shown = Display(todo, n_finished=n_done, epsilon=plan.epsilon, console=console, at_most=search is not None)
            with shown as display:
                _execute(plan, todo, store, display, jobs, search)
        _write_manifest(plan, store, started=started, finished=_now(), jobs=jobs)
        with console.status("drawing tables and figures"):
            return write_report(store, epsilon=_all_epsilons(store) | plan.epsilon)


def _to_run(plan: Plan, rows: Mapping[str, TrialRow]) -> tuple[FrontierSearch | None, list[TrialSpec]]:
    """The search, if one was asked for, with what ``rows`` hold of it; and the trials that may still run."""
    factor = plan.config.search
    if factor is None:
        return None, remaining(plan, rows)
    search = FrontierSearch(plan.specs, factor, plan.epsilon, rows)
    return search, search.at_most()


def _fit(plan: Plan, todo: Sequence[TrialSpec], jobs: int) -> Plan:
    """The plan with micro-batches that fit into memory; the trials of one model alike."""
    together = plan.config.gpus_per_trial
    one_of_each = {spec.model: spec for spec in todo}
    fitted = {model: fit_memory(spec, jobs, together).train.micro_batch for model, spec in one_of_each.items()}
    return replace(
        plan,
        specs=tuple(
            replace(s, train=replace(s.train, micro_batch=fitted[s.model])) if s.model in fitted else s
            for s in plan.specs
        ),
    )


def _all_epsilons(store: ResultStore) -> dict[str, float]:
    """ε of every size in the folder: those of earlier runs, which this one may not have asked for, too."""
    manifest = store.read_manifest()
    assert manifest is not None
    return {size: entry["epsilon"] for size, entry in manifest["sizes"].items()}


def _execute(
    plan: Plan,
    todo: Sequence[TrialSpec],
    store: ResultStore,
    display: Display,
    jobs: int,
    search: FrontierSearch | None,
) -> None:
    from lrsweep.sweep.local import run_local
    from lrsweep.sweep.ray_executor import Workers, run_ray

    def on_progress(spec: TrialSpec, progress: Progress) -> None:
        if search is not None and progress.row is not None:
            search.record(spec, progress.row)
        display(spec, progress)

    config = plan.config
    if config.local:
        run_local(search or todo, plan.corpora, store, on_progress)
    else:
        workers = Workers(device=plan.device, jobs=jobs, together=config.gpus_per_trial, address=config.ray_address)
        run_ray(search.candidates() if search else todo, plan.corpora, store, on_progress, workers, search)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_for(config: SweepConfig, **changes: Any) -> str:
    """The command line that asks for ``config`` with ``changes``; flags at their default are left out."""
    parts = [program(), "sweep"]
    changed = replace(config, **changes)
    for f in fields(SweepConfig):
        value = getattr(changed, f.name)
        default = () if f.name == "arch" else f.default
        if value == default:
            continue
        parts.append("--" + f.name.replace("_", "-"))
        if value is not True:
            items = value if isinstance(value, tuple) else (value,)
            parts.extend(f"{i:g}" if isinstance(i, float) else str(i) for i in items)
    return shlex.join(parts)
