"""What a sweep says at its end: the table, where the plots are, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from lrsweep.analysis import GridAdvice, Where, worth_trying
from lrsweep.analysis.outcomes import SCHEME_KEYS
from lrsweep.errors import DONE, OUTSIDE_GRID, TRIAL_ERRORS, UserError
from lrsweep.report import Report, write_report
from lrsweep.report.tables import frontier_text, to_rich
from lrsweep.schemes import find
from lrsweep.store import ResultStore
from lrsweep.sweep.plan import ALL, Plan, check_writable
from lrsweep.sweep.run import command_for, relative


def next_commands(plan: Plan, advice: tuple[GridAdvice, ...]) -> list[tuple[str, str]]:
    """(why, command) for each group of schemes that want the same further LRs; the most pressing first."""
    groups: dict[tuple[Where, str, str, tuple[float, ...]], list[GridAdvice]] = {}
    for a in worth_trying(advice):
        if plan.config.search is not None and a.where == "inside":
            continue  # Narrower is what the search has tried itself.
        groups.setdefault((a.where, a.body, a.size, a.lrs), []).append(a)
    commands = []
    for (where, body, size, lrs), alike in groups.items():
        schemes = [a.scheme for a in alike]
        config, out = plan.config, str(relative(plan.out))
        if where == "plateau":
            # Trials of another length are of another sweep, which has a folder of its own.
            steps = 2 * next(spec.train.steps for spec in plan.specs if spec.size == size)
            config, out = replace(config, steps=steps), f"{out}-{steps}steps"
        elif config.search is not None:
            lrs = tuple(sorted({*lrs, *(spec.lr for spec in plan.specs if spec.size == size)}))  # its range, widened
        command = command_for(config, arch=_as_typed(plan, schemes), body=(body,), size=(size,), lrs=lrs, out=out)
        commands.append((f"{', '.join(schemes)}: {alike[0].why}", command))
    return commands


def more_seeds(plan: Plan, frontier: pd.DataFrame) -> list[tuple[str, str]]:
    """(why, command) for the schemes whose LR50 a search has found, but not as narrowly as it was asked to."""
    factor, models = plan.config.search, {spec.model for spec in plan.specs}
    if factor is None:
        return []
    wide: dict[tuple[str, str], list[str]] = {}
    for scheme, body, size, lo, hi in frontier[[*SCHEME_KEYS, "lr50_lo", "lr50_hi"]].itertuples(index=False, name=None):
        if (scheme, body, size) in models and hi > factor * lo:
            wide.setdefault((body, size), []).append(scheme)
    seeds = 2 * len({spec.seed for spec in plan.specs})
    out = str(relative(plan.out))
    return [
        (
            f"{', '.join(schemes)}: LR50 is not known within a factor of {factor:g} yet; more seeds",
            command_for(plan.config, arch=_as_typed(plan, schemes), body=(body,), size=(size,), seeds=seeds, out=out),
        )
        for (body, size), schemes in wide.items()
    ]


def _as_typed(plan: Plan, schemes: Sequence[str]) -> tuple[str, ...]:
    """Their names on the command line: a scheme from a user's file is found again only with its file."""
    typed = {find(name).name: name for name in plan.config.arch if name != ALL}
    return tuple(typed.get(name, name) for name in schemes)


def print_outcome(plan: Plan, report: Report, console: Console) -> int:
    """Print the table, the paths and the next command; returns the exit code."""
    _print_report(report, plan.out, console)
    commands = [*next_commands(plan, report.advice), *more_seeds(plan, report.frontier)]
    if commands:
        console.print("\nnext", style="bold")
        for why, command in commands:
            console.print(f"  {why}", highlight=False, markup=False, soft_wrap=True)
            console.print(f"    {command}", highlight=False, markup=False, soft_wrap=True)
    if report.errors:
        trials = ResultStore(plan.out).trials()
        reason = trials.loc[trials["verdict"] == "error", "reason"].iloc[0]
        console.print(
            f"\n{report.errors} trial(s) ended in an error and are left out, the first: {reason}; "
            "the same command runs them again",
            style="red", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        return TRIAL_ERRORS
    return OUTSIDE_GRID if any(a.where in ("above", "below") for a in report.advice) else DONE


def _print_report(report: Report, folder: Path, console: Console) -> None:
    console.print()
    console.print(to_rich(frontier_text(report.frontier), title="Largest stable learning rate"))
    console.print(f"page   {relative(folder)}/report/index.html", highlight=False, soft_wrap=True)
    console.print(f"plots  {relative(folder)}/report/*.svg, .pdf, .png", highlight=False, soft_wrap=True)
    console.print(f"table  {relative(folder)}/frontier.csv, .md, .tex", highlight=False, soft_wrap=True)


def report_folder(folder: Path, epsilon: float | None, out: Path | None, console: Console) -> int:
    """Make the report of ``folder`` anew, there or in ``out``, with its own ε or another; returns the exit code.

    Raises:
        UserError: it is not a result folder, it holds no finished trial, ``out`` cannot be written or is a result
            folder itself, or ε is not above 0; or it holds the table of the trials without their records, and there is
            no ``out``.
    """
    if epsilon is not None and not epsilon > 0:
        raise UserError(f"--epsilon must be above 0 nats, got {epsilon:g}")
    if out is not None:
        check_writable(out)
    store = ResultStore(folder)
    manifest = store.read_manifest()
    if manifest is None:
        raise UserError(f"{folder} is not a result folder (no manifest.json); name one that `lrsweep sweep` wrote")
    if out is not None and ResultStore(out).read_manifest() is not None:
        raise UserError(f"--out {out} is a result folder itself, whose report this would replace; name another folder")
    if not store.rows():
        if not (folder / "trials.parquet").exists() or store.trials().empty:
            raise UserError(f"{folder} holds no finished trial yet; run its sweep first: {manifest['command']}")
        if out is None:
            raise UserError(
                f"{folder} holds trials.parquet without steps/, so a report made there would say less than the one it "
                "replaces; write it elsewhere with --out FOLDER"
            )
    own: Mapping[str, float] = {size: entry["epsilon"] for size, entry in manifest["sizes"].items()}
    report = write_report(store, epsilon=epsilon or own, out=out)
    _print_report(report, (out or folder).absolute(), console)
    return DONE
