"""The curves of public training runs, through the readers; the curves themselves are not part of the project."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrsweep.logs import read_log
from tests.logs.reading import same

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "curves"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the labelled curves are not at {FOLDER}")
FILES = sorted(FOLDER.glob("[!l]*/*.csv"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_curve_is_read_whole_in_every_format(path: Path, tmp_path: Path) -> None:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(float(row["step"])) for row in rows]
    losses = [float(row["loss"]) for row in rows]
    logged = any(row.get("grad_norm") for row in rows)
    norms = [float(row["grad_norm"]) if row.get("grad_norm") else None for row in rows] if logged else None

    curve = read_log(path)
    assert list(curve.steps) == steps
    assert same(curve.losses, losses)
    assert same(curve.grad_norms or (), norms or ())
    assert curve.notes == ()

    out = io.BytesIO()
    table = {"iteration": steps, "train_loss": pa.array(losses, pa.float64(), from_pandas=False)}
    pq.write_table(pa.table(table | ({"gnorm": norms} if logged else {})), out)
    (tmp_path / "run").write_bytes(out.getvalue())
    text = "".join(
        f"iter {step}: loss {loss!r}, time 12.5ms" + (f" | grad norm: {norm!r}\n" if norm is not None else "\n")
        for step, loss, norm in zip(steps, losses, norms or [None] * len(steps), strict=True)
    )
    (tmp_path / "run.log").write_text(text)
    for other in ("run", "run.log"):
        again = read_log(tmp_path / other)
        assert again.steps == curve.steps
        assert same(again.losses, losses)
        assert same(again.grad_norms or (), norms or ())
