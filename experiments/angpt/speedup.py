"""How many times faster than a reference each scheme of a result folder converges, at its own best learning rate.

The faster of the two is timed: steps until its training loss first reaches where the slower one ends. Both loss curves
are means over the seeds and a running tenth of the run. With a decaying schedule the faster one is timed before its
learning rate has fallen, so a speed-up reads rather too small.

    python experiments/angpt/speedup.py results/FOLDER REFERENCE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Curve = NDArray[np.float64]


def smooth(losses: Curve) -> Curve:
    """Running mean over a tenth of the run, [steps − window + 1]; its last value is the mean of the last tenth."""
    window = max(1, len(losses) // 10)
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def speed_up(reference: Curve, losses: Curve) -> float:
    """Steps of ``reference`` over steps of ``losses`` to the loss at which the slower of the two ends; NaN stays NaN.

    Args:
        reference: training losses of consecutive steps, nats.
        losses: those of the scheme to compare, of the same length.
    """
    slow, fast = smooth(reference), smooth(losses)
    if np.isnan(slow).any() or np.isnan(fast).any():
        return np.nan
    if fast[-1] > slow[-1]:
        return 1 / speed_up(losses, reference)
    window = len(reference) - len(slow) + 1
    return len(reference) / (int(np.argmax(fast <= slow[-1])) + window)


def curves(folder: Path) -> dict[tuple[str, str, str], tuple[float, Curve]]:
    """Best LR and seed-mean training losses there, by scheme, body and size."""
    trials = pd.read_parquet(folder / "trials.parquet")
    found = {}
    for best in pd.read_csv(folder / "frontier.csv").to_dict("records"):
        key = (str(best["scheme"]), str(best["body"]), str(best["size"]))
        mine = (trials[["scheme", "body", "size"]] == list(key)).all(axis=1) & (trials["lr"] == best["best_lr"])
        seeds = [pd.read_parquet(folder / "steps" / f"{t}.parquet")["loss"].to_numpy() for t in trials["trial"][mine]]
        found[key] = (float(best["best_lr"]), np.mean(seeds, axis=0))
    return found


def main(folder: str, reference: str) -> None:
    """Print a line for each scheme."""
    found = curves(Path(folder))
    for (scheme, body, size), (lr, losses) in found.items():
        _, slow = found[reference, body, size]
        print(f"{scheme:>16} {body} {size}  best LR {lr:g}  {speed_up(slow, losses):.2f} times {reference}'s speed")


if __name__ == "__main__":
    main(*sys.argv[1:])
