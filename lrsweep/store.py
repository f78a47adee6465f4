"""The result folder of a sweep: plain files that are the only record of what was run.

::

    results/<sweep>/
      manifest.json              resolved configuration, command, versions, hardware, data
      trials.parquet             one row a trial, made anew from the files below
      steps/<trial>.parquet      one row a step; its footer carries the trial's row
      layers/<trial>.parquet     long form: step, layer, site, stat, value

A trial is finished when its ``steps`` file is whole. That file is written last and renamed into place, so a
killed sweep leaves either a whole trial or none, and whatever is finished is never run again.
``NaN`` is a value; ``null`` means not logged. Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lrsweep.errors import UserError

SCHEMA_VERSION = 1
_ROW_KEY = b"lrsweep.trial"
_VERSION_KEY = b"schema_version"

LAYER_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("layer", pa.int16()),
        ("site", pa.dictionary(pa.int8(), pa.string())),
        ("stat", pa.dictionary(pa.int8(), pa.string())),
        ("value", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial as ``trials.parquet`` holds it. Losses are in nats per token; NaN where a value never came to be."""

    scheme: str
    """Label of the method, modifiers included."""
    body: str
    """``gpt`` or ``llama``."""
    size: str
    """Name of the size preset."""
    n_params: int
    """Parameters, embeddings included."""
    lr: float
    """Peak learning rate."""
    seed: int
    """Seed of the initial weights; the order of the data is the sweep's."""
    verdict: str
    """``stable``, ``diverged``, ``nonfinite``, ``stalled``, or ``error`` for a fault of the program or machine."""
    reason: str
    """The verdict in one line, with its numbers."""
    onset_step: int | None
    """First step of the trouble; None when there was none."""
    steps: int
    """Optimizer steps run (fewer than planned if the trial was stopped)."""
    tokens: int
    """Training tokens seen."""
    loss_init: float
    """Held-out loss before the first step."""
    loss_final: float
    """Held-out loss after the last planned step; NaN if the trial ended early."""
    loss_best: float
    """Lowest smoothed training loss."""
    spikes: int
    """Loss spikes (see :mod:`lrsweep.detect`); outliers are not counted."""
    logit_max: float
    """Largest attention logit of any measured step and layer, before a cap; NaN if never measured."""
    wall_s: float
    """Seconds of training and evaluation."""
    device: str
    """Device name, threads on a CPU, and how many where several train it together."""
    trial: str
    """Hash of the configuration that decides the trial's numbers."""


TRIAL_COLUMNS = tuple(f.name for f in fields(TrialRow))

_TRIAL_SCHEMA = pa.schema(
    [
        (f.name, {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "int | None": pa.int64()}[str(f.type)])
        for f in fields(TrialRow)
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def as_table(rows: Iterable[TrialRow]) -> pd.DataFrame:
    """Rows with :data:`TRIAL_COLUMNS`, typed even if there are none; ``onset_step`` is a nullable integer."""
    return _typed(_arrow(rows).to_pandas())


def _arrow(rows: Iterable[TrialRow]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=_TRIAL_SCHEMA)


def _typed(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.astype({"onset_step": "Int64"})


def _replace_with(path: Path, write: Any) -> None:
    """Write through a temporary name beside ``path`` and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step."""
    _replace_with(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step."""
    _replace_with(path, lambda p: p.write_bytes(content))


class ResultStore:
    """Reads and writes one result folder.

    Args:
        root: the folder; created by the first write.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # ---- manifest ----

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where there is none. UserError if it is not readable JSON."""
        path = self.root / "manifest.json"
        if not path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} is not readable JSON ({error}); restore it or pass another folder with --out"
            ) from None
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        write_text(self.root / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    # ---- trials ----

    def write_trial(
        self, row: TrialRow, steps: Mapping[str, Sequence[Any]], layers: Mapping[str, Sequence[Any]]
    ) -> None:
        """Record a finished trial.

        Args:
            row: the trial's summary.
            steps: columns of equal length, ``step`` first; None means not logged.
            layers: columns ``step, layer, site, stat, value``.
        """
        layer_table = pa.table(dict(layers)).cast(LAYER_SCHEMA)
        version = {_VERSION_KEY: str(SCHEMA_VERSION).encode()}
        layer_table = layer_table.replace_schema_metadata(version)
        # from_pandas=False keeps NaN a value apart from null.
        step_table = pa.table({name: pa.array(column, from_pandas=False) for name, column in steps.items()})
        step_table = step_table.replace_schema_metadata({**version, _ROW_KEY: json.dumps(asdict(row)).encode()})
        _replace_with(
            self.root / "layers" / f"{row.trial}.parquet",
            lambda p: pq.write_table(layer_table, p, compression="zstd"),
        )
        _replace_with(
            self.root / "steps" / f"{row.trial}.parquet",
            lambda p: pq.write_table(step_table, p, compression="zstd"),
        )

    def rows(self) -> dict[str, TrialRow]:
        """Every whole trial by its id, read from the footers of ``steps/``.

        Raises:
            UserError: a file is cut short or of another schema; the message names it.
        """
        rows = {}
        for path in sorted((self.root / "steps").glob("[!.]*.parquet")):
            try:
                metadata = pq.read_schema(path).metadata or {}
                version = int(metadata[_VERSION_KEY])
                if version != SCHEMA_VERSION:
                    raise UserError(
                        f"{path} has schema version {version}, this lrsweep reads {SCHEMA_VERSION}; use --out"
                    )
                rows[path.stem] = TrialRow(**json.loads(metadata[_ROW_KEY]))
            except UserError:
                raise
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                what = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(
                    f"{path} is cut short or not a trial of lrsweep ({what}); delete it and the trial is run again"
                ) from None
        return rows

    def write_trials(self, folder: Path | None = None) -> pd.DataFrame:
        """Make ``trials.parquet`` anew from the finished trials, here or in ``folder``, and return it as a table."""
        there = ResultStore(folder or self.root)
        rows = sorted(self.rows().values(), key=lambda r: (r.body, r.size, r.scheme, r.lr, r.seed))
        table = _arrow(rows)
        _replace_with(there.root / "trials.parquet", lambda p: pq.write_table(table, p, compression="zstd"))
        return there.trials()

    def trials(self) -> pd.DataFrame:
        """``trials.parquet`` as a table with :data:`TRIAL_COLUMNS`; ``onset_step`` is a nullable integer.

        Raises:
            UserError: the folder has no ``trials.parquet`` or it is cut short.
        """
        absent = "run `lrsweep sweep` first, or name the folder of a sweep"
        return _typed(_read(self.root / "trials.parquet", absent))

    def steps(self, trial: str) -> pd.DataFrame:
        """Per-step record of one trial: ``step, tokens, lr, loss, grad_norm, update_norm, log_z, logit_max, …``."""
        return _read(self.root / "steps" / f"{trial}.parquet", "that trial has not finished")

    def layers(self, trial: str) -> pd.DataFrame:
        """Per-layer record of one trial in long form: ``step, layer, site, stat, value``."""
        return _read(self.root / "layers" / f"{trial}.parquet", "that trial has not finished")


def _read(path: Path, absent: str) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"{path} does not exist: {absent}")
    try:
        table: pd.DataFrame = pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is cut short or unreadable ({str(error).splitlines()[0]})") from None
    return table
