"""The command line. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

import lrsweep
from lrsweep.config import SweepConfig, read_config_file, shown
from lrsweep.detect import DetectorConfig
from lrsweep.errors import DONE, INTERRUPTED, USAGE, UserError
from lrsweep.logs import Format


@dataclass(frozen=True, kw_only=True)
class Sweep(SweepConfig):
    """Train GPT proxies over a learning-rate grid and find the largest stable LR of each scheme.

    Exit code 0 when done, 2 for a usage error, 3 if trials ended in an error, 4 if the frontier lies outside the
    grid, 130 when interrupted. The same command goes on with an interrupted sweep.
    """

    config: Annotated[Path | None, shown("FILE.toml")] = None
    """File of settings; flags go over it."""


@dataclass(frozen=True, kw_only=True)
class Train(SweepConfig):
    """Train one trial in this process: one scheme, one learning rate."""

    config: Annotated[Path | None, shown("FILE.toml")] = None
    """File of settings; flags go over it."""
    lr: Annotated[float | None, shown("X")] = None
    """Peak learning rate."""
    seed: Annotated[int, shown("N")] = 0
    """Seed of the initial weights."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Make tables, figures and the page of a result folder anew."""

    folder: Annotated[Path, tyro.conf.Positional, shown("FOLDER")]
    """Result folder of a sweep."""
    epsilon: Annotated[float | None, shown("X")] = None
    """Nats above the best sibling from which a final loss counts as degraded; default: the sweep's."""
    out: Annotated[Path | None, shown("FOLDER")] = None
    """Where to write; default: the result folder itself."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Say which signals of one trial left the range of its stable siblings, in what order, and how long before."""

    trial: Annotated[str, tyro.conf.Positional, shown("TRIAL")]
    """A trial's name in trials.parquet, a part of it that no other has, or its file in steps/."""
    out: Annotated[Path | None, shown("FOLDER")] = None
    """Result folder of the sweep; default: any in results/."""
    plot: Annotated[Path | None, shown("FILE")] = None
    """Draw the loss and the first signals against the siblings; .svg, .pdf or .png."""


@dataclass(frozen=True, kw_only=True)
class Detect:
    """Judge training logs: CSV, JSON, Parquet, TensorBoard, transformers, Megatron-LM, torchtitan, nanoGPT and its kin.

    Exit code 0 if every run is stable, 1 if one diverged, went non-finite or stalled, 2 if a log cannot be read.
    Spikes that recovered are listed and change no exit code.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, shown("FILE [FILE ...]")] = ()
    """Logs, folders of TensorBoard runs, or - for standard input."""
    format: Annotated[Format | None, shown("{csv,jsonl,json,parquet,tensorboard,text}")] = None
    """Format of the logs; default: told by their content."""
    loss_key: Annotated[str | None, shown("NAME")] = None
    """Column of the training loss; default: by known names."""
    step_key: Annotated[str | None, shown("NAME")] = None
    """Column of the step, or `none` to number the points."""
    grad_norm_key: Annotated[str | None, shown("NAME")] = None
    """Column of the gradient norm."""
    grace_steps: Annotated[int, tyro.conf.arg(metavar="N")] = DetectorConfig().grace_steps
    """First steps, in which only non-finite losses count; the warm-up's length if that is longer."""
    margin: Annotated[float, tyro.conf.arg(metavar="NATS")] = DetectorConfig().margin
    """Rise of the smoothed loss above its best that counts as having left it."""
    stall_level: Annotated[float | None, shown("NATS")] = None
    """Loss that a run must get below, such as the unigram entropy of its text; default: not judged."""
    json: Annotated[bool, shown("")] = False
    """Print one JSON object for each log instead, a line each."""
    plot: Annotated[Path | None, shown("FILE")] = None
    """Draw each loss with its events and verdict; .svg, .pdf or .png."""


@dataclass(frozen=True, kw_only=True)
class Schemes:
    """List the schemes, or show one."""

    name: Annotated[str | None, tyro.conf.Positional, shown("[NAME]")] = None
    """Scheme to show."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine offers a sweep, and what is missing."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure step time, tokens/s, MFU, start-up, memory and the cost of the probes, each model in its own process.

    With --peers the same for the same Llama in litgpt and transformers.
    """

    arch: Annotated[tuple[str, ...], shown("NAME [NAME ...]")] = ("preln", "qknorm_cap")
    """Schemes to time."""
    body: Annotated[str, shown("NAME")] = "gpt"
    """Transformer body."""
    size: Annotated[tuple[str, ...], shown("NAME [NAME ...]")] = ()
    """Size presets; default 0.2m on a CPU, 10m on a GPU."""
    rounds: Annotated[int | None, shown("N")] = None
    """Paired rounds, each of which runs every variant once; default 60 on a CPU, 20 on a GPU."""
    peers: Annotated[bool, shown("")] = False
    """Measure litgpt and transformers at the same shapes; needs --body llama."""
    out: Annotated[Path | None, shown("FILE.json")] = None
    """Where to save the figures, with hardware and versions."""


Command = Sweep | Train | ReportCommand | Explain | Detect | Schemes | Doctor | Bench
_COMMANDS: dict[str, Callable[..., Any]] = {
    "sweep": Sweep,
    "train": Train,
    "report": ReportCommand,
    "explain": Explain,
    "detect": Detect,
    "schemes": Schemes,
    "doctor": Doctor,
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the ``lrsweep`` command; never returns."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"lrsweep {lrsweep.__version__}")
        sys.exit(DONE)
    command: Command = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="lrsweep",
        description="Learning-rate stability sweeps for GPT pre-training.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        code = _run(command, argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = USAGE
    sys.exit(code)


def _run(command: Command, argv: Sequence[str]) -> int:
    match command:
        case Sweep():
            return _sweep(command, argv)
        case Train():
            return _train(command, argv)
        case ReportCommand():
            return _report(command)
        case Explain():
            from rich.console import Console

            from lrsweep.explain import print_explanation

            return print_explanation(command.trial, command.out, command.plot, Console())
        case Detect():
            return _detect(command)
        case Schemes():
            from lrsweep.describe import print_schemes

            return print_schemes(command.name)
        case Doctor():
            from lrsweep.sweep.doctor import print_diagnosis

            return print_diagnosis()
        case Bench():
            from lrsweep.bench import run_bench

            return run_bench(
                command.arch,
                command.body,
                command.size,
                rounds=command.rounds,
                peers=command.peers,
                out=command.out,
            )


def _settings(command: Sweep | Train, argv: Sequence[str]) -> SweepConfig:
    """Flags over file over defaults."""
    names = [f.name for f in fields(SweepConfig)]
    given = {name for name in names if any(a.split("=")[0] in _spellings(name) for a in argv)}
    for name in given:
        if getattr(command, name) == ():
            raise UserError(f"--{name} is empty; give at least one value, or leave the flag out")
    base = SweepConfig(**(read_config_file(command.config) if command.config else {}))
    return replace(base, **{name: getattr(command, name) for name in given})


def _spellings(name: str) -> tuple[str, str]:
    return f"--{name}", f"--{name.replace('_', '-')}"


def _sweep(command: Sweep, argv: Sequence[str]) -> int:
    from rich.console import Console

    from lrsweep.sweep import make_plan, run_sweep
    from lrsweep.sweep.closing import print_outcome
    from lrsweep.sweep.run import command_for

    config = _settings(command, argv)
    console = Console(soft_wrap=not sys.stdout.isatty())
    try:
        with console.status("reading the text"):
            plan = make_plan(config)
        report = run_sweep(plan, console)
    except KeyboardInterrupt:
        console.print("\ninterrupted; finished trials are kept, the same command goes on:")
        console.print(f"  {command_for(config)}", highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    if report is None:
        return DONE
    return print_outcome(plan, report, console)


def _train(command: Train, argv: Sequence[str]) -> int:
    from rich.console import Console

    from lrsweep.sweep.one import train_one

    config = _settings(command, argv)
    if command.lr is None:
        raise UserError("--lr is missing; give the peak learning rate, for example --lr 3e-3")
    return train_one(replace(config, lrs=(command.lr,)), command.seed, Console(soft_wrap=not sys.stdout.isatty()))


def _report(command: ReportCommand) -> int:
    from rich.console import Console

    from lrsweep.sweep.closing import report_folder

    return report_folder(command.folder, command.epsilon, command.out, Console(soft_wrap=not sys.stdout.isatty()))


def _detect(command: Detect) -> int:
    from rich.console import Console

    from lrsweep.detect_command import run_detect
    from lrsweep.logs import Keys

    try:
        config = DetectorConfig(grace_steps=command.grace_steps, margin=command.margin, stall_level=command.stall_level)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    return run_detect(
        command.files,
        format=command.format,
        keys=Keys(step=command.step_key, loss=command.loss_key, grad_norm=command.grad_norm_key),
        config=config,
        as_json=command.json,
        plot=command.plot,
        console=Console(width=None if sys.stdout.isatty() else 1000),  # a line of a file or a pipe is not folded
    )


if __name__ == "__main__":
    main()
