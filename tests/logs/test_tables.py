"""CSV in its dialects, and Parquet."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrsweep.errors import UserError
from lrsweep.logs import read_log
from lrsweep.store import ResultStore
from tests.logs.reading import read, same
from tests.report.synthetic import Sweep, make_trial

NAN = math.nan

WANDB = """\
"Step","run-7 - train/loss","run-7 - train/loss__MIN","run-7 - train/loss__MAX"
"10","4.25","4.25","4.25"
"20","4.125","4.125","4.125"
"""
LIGHTNING = """\
epoch,grad_2.0_norm_total,step,train_loss_epoch,train_loss_step,val_loss
0,0.75,10,,4.25,
0,0.5,20,,4.125,
0,,20,4.2,,
0,,20,,,9.0
"""
KERAS = "epoch,loss,val_loss\n10,4.25,9.0\n20,4.125,9.0\n"


@pytest.mark.parametrize(
    ("log", "norms"),
    [
        pytest.param("step,loss,grad_norm\n10,4.25,0.75\n20,4.125,0.5\n", (0.75, 0.5), id="plain"),
        pytest.param("\ufeffStep;Loss\r\n10;4.25\r\n20;4.125\r\n", None, id="semicolons, byte order mark, CRLF"),
        pytest.param("# iter\ttrain_loss\n10\t4.25\n20\t4.125\n", None, id="tabs, numpy header"),
        pytest.param('step,"loss",text\n10,4.25,"a, b"\n20,4.125,"two\nlines"\n', None, id="quotes"),
        pytest.param("step,loss\n10,4.25\nstep,loss\n20,4.125\n", None, id="header again"),
        pytest.param("step,loss,lr\n10,4.25,1e-3\n20,4.125,1e-3\n30,4.", None, id="last row cut short"),
        pytest.param("step,loss\n1e1,4.25\n20.0,4.125\n", None, id="steps as floats"),
        pytest.param(WANDB, None, id="wandb"),
        pytest.param(LIGHTNING, (0.75, 0.5), id="lightning"),
        pytest.param(KERAS, None, id="keras"),
    ],
)
def test_csv(log: str, norms: tuple[float, ...] | None, tmp_path: Path) -> None:
    curve = read(tmp_path, log, name="log.csv")
    assert curve.format == "csv"
    assert curve.steps[:2] == (10, 20)
    assert curve.losses[:2] == (4.25, 4.125)
    assert curve.grad_norms == norms


def test_csv_cells_that_hold_no_number_were_not_logged(tmp_path: Path) -> None:
    curve = read(tmp_path, "step,loss\n1,3.5\n2,\n3,NaN\n4,-inf\n5,null\n,2.0\n6,3.25\n")
    assert curve.steps == (1, 3, 4, 6)
    assert same(curve.losses, [3.5, NAN, -math.inf, 3.25])


def parquet(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def test_parquet_tells_null_from_nan(tmp_path: Path) -> None:
    content = parquet(
        step=[1, 2, 3, 4],
        loss=pa.array([3.5, None, NAN, 3.25], from_pandas=False),
        grad_norm=pa.array([1.0, 2.0, None, 3.0], pa.float32()),
        note=["a", "b", "c", "d"],
    )
    curve = read(tmp_path, content, name="log.bin")
    assert curve.format == "parquet"
    assert curve.steps == (1, 3, 4)
    assert same(curve.losses, [3.5, NAN, 3.25])
    assert curve.grad_norms == (1.0, None, 3.0)


def test_the_step_records_of_a_sweep(tmp_path: Path) -> None:
    row, steps, layers = make_trial(Sweep(schemes=("preln",), lrs=(0.1,), seeds=(0,), steps=30), "preln", 0.1, 0)
    ResultStore(tmp_path).write_trial(row, steps, layers)
    curve = read_log(tmp_path / "steps" / f"{row.trial}.parquet")
    assert curve.steps == tuple(steps["step"])
    assert same(curve.losses, steps["loss"])
    assert (curve.loss_key, curve.grad_norm_key) == ("loss", "grad_norm" if "grad_norm" in steps else None)


def test_a_parquet_cut_short_is_one_line(tmp_path: Path) -> None:
    content = parquet(step=[1, 2], loss=[3.0, 2.0])
    with pytest.raises(UserError, match="not a whole Parquet file") as caught:
        read(tmp_path, content[:-30])
    assert "\n" not in str(caught.value)


def test_columns_are_chosen_by_their_names_or_by_keys(tmp_path: Path) -> None:
    log = "tokens,step,loss,ce_loss,norm_a,norm_b\n1024,1,4.5,4.25,1,7\n2048,2,4.25,4.125,2,8\n"
    curve = read(tmp_path, log)
    assert (curve.step_key, curve.loss_key, curve.grad_norm_key) == ("step", "loss", None)
    curve = read(tmp_path, log, step="tokens", loss="CE-Loss", grad_norm="norm_b")
    assert (curve.steps, curve.losses, curve.grad_norms) == ((1024, 2048), (4.25, 4.125), (7.0, 8.0))


def test_the_name_with_more_values_is_the_loss(tmp_path: Path) -> None:
    curve = read(tmp_path, "step,train_loss,loss\n1,3.5,\n2,3.25,\n3,3.0,9.0\n")
    assert curve.loss_key == "train_loss"


@pytest.mark.parametrize(
    ("log", "keys", "message"),
    [
        (
            "step,loss,train_loss\n1,3,3\n",
            {},
            r"several columns may be the training loss \(loss, train_loss\).*--loss-key",
        ),
        ("step,a_loss,b_loss\n1,3,3\n", {}, r"several columns may be the training loss \(a_loss, b_loss\).*--loss-key"),
        ("step,acc\n1,3\n", {}, r"no column is called like a training loss \(found: step, acc\).*--loss-key"),
        ("step,val_loss\n1,3\n", {}, r"no column is called like a training loss \(found: step, val_loss\).*--loss-key"),
        ("x,loss\n1,3\n", {}, r"no column beside 'loss' is called like a step .*x.*--step-key none"),
        ("step,loss\n1,3\n", {"loss": "perplexity"}, r"--loss-key 'perplexity': no column .*found: step, loss"),
        ("step,loss\n1,3\n", {"step": "tokens"}, r"--step-key 'tokens': no column .*found: step, loss"),
        ("step,loss\n1,3\n", {"grad_norm": "gn"}, r"--grad-norm-key 'gn': no column .*found: step, loss"),
        ("step,loss\n1.5,3\n", {}, r"column 'step' holds 1.5: steps are whole numbers.*--step-key"),
        ("step,loss\n", {}, r"column 'loss' holds no number"),
        ("step,loss\n1,\n2,\n", {}, r"column 'loss' holds no number"),
    ],
)
def test_what_is_missing_or_ambiguous_is_one_line_that_names_the_flag(
    log: str, keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, log, **keys)
    assert str(caught.value).startswith(f"{tmp_path / 'run.log'}: ")
    assert "\n" not in str(caught.value)


def test_points_are_numbered_where_the_log_has_no_steps(tmp_path: Path) -> None:
    curve = read(tmp_path, "x,loss\n0.5,3.5\n0.6,3.25\n", step="none")
    assert curve.steps == (1, 2)
    assert curve.step_key is None


def test_several_gradient_norms_are_none_and_a_note(tmp_path: Path) -> None:
    curve = read(tmp_path, "step,loss,w1/grad_norm,w2/grad_norm\n1,3,1,2\n")
    assert curve.grad_norms is None
    assert any("--grad-norm-key" in note and "w1/grad_norm" in note for note in curve.notes)
