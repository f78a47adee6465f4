"""The command behind ``make bench-detector``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from lrsweep.detector_bench.curves import Group, read_curves
from lrsweep.detector_bench.rules import RULES
from lrsweep.detector_bench.score import Score, score_own, score_peer
from lrsweep.errors import DONE, USAGE, UserError


def main() -> int:
    """Print the table for a folder of curves, and save it where ``--json`` says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make bench-detector", description=__doc__)
    parser.add_argument("curves", type=Path, help="folder with labels.csv and the curves it names")
    parser.add_argument("--json", type=Path, help="file to save the scores in")
    arguments = parser.parse_args()
    try:
        curves = read_curves(arguments.curves)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    scores: list[Score] = []
    missing: list[str] = []
    for name in RULES:
        try:
            scores.append(score_peer(name, curves))
        except ImportError as error:
            missing.append(f"| {name} | not run: {error.name} is not installed (pip install --group bench) |")
    scores.append(score_own(curves))
    print(table(scores, Counter(curve.group for curve in curves), missing))
    if arguments.json is not None:
        found = {"curves": str(arguments.curves), "scores": [asdict(score) for score in scores]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return DONE


def table(scores: list[Score], sizes: Counter[Group], missing: list[str]) -> str:
    """Markdown: a line a rule, the number of runs of each kind in the head."""
    groups = get_args(Group)
    heads = [("" if group in groups[:2] else "false alarm: ") + f"{group} ({sizes[group]})" for group in groups]
    lines = [
        "| rule | " + " | ".join(heads) + " | points late | steps late | µs a point |",
        "| :-- |" + " --: |" * (len(groups) + 3),
    ]
    for score in scores:
        counts = [str(score.alarmed[group]) for group in groups]
        late = ["–" if math.isnan(value) else f"{value:g}" for value in (score.points_late, score.steps_late)]
        lines.append("| " + " | ".join([score.rule, *counts, *late, f"{score.us_per_update:.1f}"]) + " |")
    return "\n".join([*lines[:2], *missing, *lines[2:]])


if __name__ == "__main__":
    sys.exit(main())
