"""One trial: train, judge as it goes, record. Divergence is a result; only a fault of the program raises."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus, batch_offsets, heldout_windows
from lrsweep.detect import DetectorConfig, DivergenceDetector
from lrsweep.model import ProbeLevel
from lrsweep.store import ResultStore, TrialRow
from lrsweep.train.ranks import Ranks
from lrsweep.train.recorder import Recorder, lowest_smoothed
from lrsweep.train.schedule import learning_rate
from lrsweep.train.step import Engine, EngineKey, Interval

CPU_THREADS = 1
"""Threads of a trial on a CPU: losses depend on it bitwise, so it is the same wherever a trial runs."""


_Started = tuple[range, list[float], list[ProbeLevel], Callable[[], Interval]]
"""Steps of an interval, their learning rates, what is measured at each, and what waits for its statistics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a trial stands after an interval."""

    step: int
    """Steps run."""
    steps: int
    """Steps planned."""
    loss: float
    """Mean training loss of the interval, nats; NaN if any was."""
    verdict: str
    """Verdict so far."""
    row: TrialRow | None = None
    """The trial's record, once it has ended."""


def device_name(device: str, ranks: int = 1) -> str:
    """What ``trials.parquet`` calls the device, or that many of them."""
    times = f"{ranks} × " if ranks > 1 else ""
    if device == "cuda":
        return times + torch.cuda.get_device_name()
    return f"cpu, {times}{CPU_THREADS} thread{'s' if CPU_THREADS > 1 else ''}"


def run_trial(
    spec: TrialSpec,
    corpus: Corpus,
    store: ResultStore | None = None,
    engine: Engine | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Train ``spec`` an interval at a time; the last item carries the trial's row, written to ``store`` by then.

    A trial whose verdict becomes ``diverged`` or ``nonfinite`` ends there. Same spec, same device, same versions:
    bitwise the same losses.

    Ranks that train it together all call this; what they see is the same on each, so they decide alike.

    Args:
        spec: what to train.
        corpus: the tokens that ``spec.data`` names.
        store: where to record; None: nowhere.
        engine: a step built for ``EngineKey.of(spec)`` and ``ranks``, to save its construction.
        ranks: the processes that train it together; None: this one alone.
    """
    if spec.device == "cpu":
        torch.set_num_threads(CPU_THREADS)
    started = time.perf_counter()
    train, shape = spec.train, spec.shape
    engine = engine or Engine(EngineKey.of(spec), ranks=ranks)
    engine.reset(spec.seed)
    offsets_NxB = batch_offsets(len(corpus.train_tokens), shape.seq_len, train.batch_size, train.steps, train.data_seed)
    heldout_WxT = heldout_windows(corpus, shape.seq_len, train.heldout_tokens)
    reach_T = np.arange(shape.seq_len + 1)
    detector = DivergenceDetector(
        DetectorConfig(stall_level=corpus.unigram_entropy, grace_steps=max(train.warmup_steps, 30))
    )
    recorder = Recorder(engine.stat_names, tokens_per_step=train.batch_size * shape.seq_len)
    begins_as = (spec.seed, corpus.data_hash)
    if begins_as not in engine.initial_losses:
        engine.initial_losses[begins_as] = engine.evaluate(heldout_WxT)

    def start(first: int) -> _Started:
        steps = range(first + 1, min(first + train.report_every, train.steps) + 1)
        lrs = [learning_rate(step, spec.lr, train) for step in steps]
        probes = [ProbeLevel.ALL if (step - 1) % train.probe_every == 0 else ProbeLevel.NORMS for step in steps]
        batches = corpus.train_tokens[offsets_NxB[first : first + len(steps), :, None] + reach_T]
        return steps, lrs, probes, engine.start(batches, lrs, probes)

    verdict = detector.verdict
    ahead, running = iter(range(0, train.steps, train.report_every)), deque[_Started]()
    while True:
        running.extend(start(first) for first in islice(ahead, 1 + engine.lookahead - len(running)))
        steps, lrs, probes, read = running.popleft()
        interval = read()
        recorder.add(steps, lrs, probes, interval)
        losses = interval.scalars_RxS[:, 0].tolist()
        for step, loss, grad_norm in zip(steps, losses, interval.scalars_RxS[:, 1].tolist(), strict=True):
            verdict = detector.update(step, loss, grad_norm)
        if verdict.unstable or steps[-1] == train.steps:
            break
        yield Progress(step=steps[-1], steps=train.steps, loss=float(np.mean(losses)), verdict=verdict.kind)

    verdict = detector.finish()
    completed = steps[-1] == train.steps
    row = TrialRow(
        scheme=spec.scheme.name,
        body=spec.body,
        size=spec.size,
        n_params=engine.n_params(),
        lr=spec.lr,
        seed=spec.seed,
        verdict=verdict.kind,
        reason=verdict.reason,
        onset_step=verdict.onset,
        steps=steps[-1],
        tokens=steps[-1] * train.batch_size * shape.seq_len,
        loss_init=engine.initial_losses[begins_as],
        loss_final=engine.evaluate(heldout_WxT) if completed else math.nan,
        loss_best=lowest_smoothed(recorder.losses()),
        spikes=sum(event.kind == "spike" for event in detector.events),
        logit_max=recorder.logit_max(),
        wall_s=time.perf_counter() - started,
        device=device_name(spec.device, 1 if ranks is None else ranks.size),
        trial=spec.trial,
    )
    if store is not None:
        store.write_trial(row, *recorder.columns())
    yield Progress(step=row.steps, steps=train.steps, loss=float(np.mean(losses)), verdict=verdict.kind, row=row)


def error_row(spec: TrialSpec, reason: str) -> TrialRow:
    """The record of a trial that a fault of the program or machine ended."""
    nan = math.nan
    return TrialRow(
        scheme=spec.scheme.name,
        body=spec.body,
        size=spec.size,
        n_params=0,
        lr=spec.lr,
        seed=spec.seed,
        verdict="error",
        reason=reason,
        onset_step=None,
        steps=0,
        tokens=0,
        loss_init=nan,
        loss_final=nan,
        loss_best=nan,
        spikes=0,
        logit_max=nan,
        wall_s=nan,
        device=spec.device,
        trial=spec.trial,
    )
