"""Text logs in the line formats of the trainers that print them; all numbers are made up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lrsweep.errors import UserError
from tests.logs.reading import read, same

NAN = math.nan

MEGATRON = """\
[default7]: iteration      310/    1000 | consumed samples:        79360 | elapsed time per iteration (ms): 512.1 | \
learning rate: 1.500E-04 | global batch size:   256 | lm loss: 4.250000E+00 | loss scale: 4096.0 | grad norm: 0.750 | \
num zeros: 0.0 | number of skipped iterations:   0 | number of nan iterations:   0 |
time (ms) | optimizer: 8.11
[default7]: iteration      320/    1000 | consumed samples:        81920 | elapsed time per iteration (ms): 510.9 | \
learning rate: 1.500E-04 | global batch size:   256 | lm loss: 4.125000E+00 | loss scale: 4096.0 | grad norm: 0.500 | \
num zeros: 0.0 | number of skipped iterations:   0 | number of nan iterations:   0 |
 validation loss at iteration 320 | lm loss value: 9.000000E+00 | lm loss PPL: 8.103084E+03 |
"""
TORCHTITAN = """\
[rank0]:[titan] 2025-07-21 15:57:42,774 - root - INFO - \x1b[31mstep:  3  \x1b[32mloss:  4.25000  \
\x1b[38;2;180;60;0mgrad_norm:  0.7500  \x1b[36mmemory:  0.71GiB(0.90%)  \x1b[34mtps: 30,768  \x1b[35mmfu: 0.32%\x1b[39m
[rank0]:[titan] 2025-07-21 15:57:43,242 - root - INFO - \x1b[33mvalidate step:  3  \x1b[32mloss:  9.0000\x1b[39m
[rank0]:[titan] 2025-07-21 15:57:44,774 - root - INFO - \x1b[31mstep:  4  \x1b[32mloss:  4.12500  \
\x1b[38;2;180;60;0mgrad_norm:  0.5000  \x1b[36mmemory:  0.71GiB(0.90%)  \x1b[34mtps: 30,768  \x1b[35mmfu: 0.32%\x1b[39m
"""
NANOGPT = """\
step 0: train loss 10.9000, val loss 9.0000
iter 0: loss 4.2500, time 8055.32ms, mfu -100.00%
iter 10: loss 4.1250, time 372.77ms, mfu 21.20%
"""
NANOCHAT = """\
Step 00000 | Validation bpb: 3.2004
step 00000/16704 (0.00%) | loss: 4.250000 | lrm: 1.00 | dt: 18077.85ms | tok/sec: 29,001 | mfu: 1.81 | epoch: 1
step 00001/16704 (0.01%) | loss: 4.125000 | lrm: 1.00 | dt: 659.49ms | tok/sec: 794,993 | mfu: 49.69 | epoch: 1
"""
LLMC_LOG = """\
s:0 tel:9.0000
s:0 trl:4.2500 lr:0.000001 norm:0.75
s:0 eval:0.2460
s:1 trl:4.1250 lr:0.000002 norm:0.50
"""
LLMC_STDOUT = """\
allocating 1.2 GiB for parameters
step    1/19560 | loss 4.250000 (+nanz)| norm 0.7500 (+nanz)| lr 8.57e-07 | 3064.58 ms | 40.1% bf16 MFU | 171000 tok/s
step    2/19560 | loss 4.125000 (+0.00z)| norm 0.5000 (-0.10z)| lr 1.71e-06 | 306.58 ms | 42.1% bf16 MFU | 171000 tok/s
"""
LLMC_PYTHON = """\
val loss 9.0
step    1/19560 | train loss 4.250000 | norm 0.7500 | lr 8.57e-07 | (3064.58 ms | 171000 tok/s)
step    2/19560 | train loss 4.125000 | norm 0.5000 | lr 1.71e-06 | (306.58 ms | 171000 tok/s)
"""
MODDED = """\
import os
    print(f"step:{step+1}/{args.num_iterations} train_loss:{train_loss.item():.4f}")
iterations : int = 5100 # number of iterations to run
step:0/5100 val_loss:9.0000 train_time:268ms step_avg:nanms
step:1/5100 train_loss:4.2500 train_time:23767ms step_avg:nanms
step:2/5100 train_loss:4.1250 train_time:23899ms step_avg:nanms
"""
BUILD_NANOGPT = """\
0 val 9.0864
0 hella 0.2498
0 train 4.250000
1 train 4.125000
"""
MLPERF = """\
0: :::MLLOG {"namespace": "", "time_ms": 17, "event_type": "POINT_IN_TIME", "key": "tracked_stats", \
"value": {"train_step_time": 19.7, "reduced_train_loss": 4.25}, \
"metadata": {"file": "cb.py", "lineno": 4, "step": 448.0}}
0: :::MLLOG {"namespace": "", "time_ms": 18, "event_type": "POINT_IN_TIME", "key": "eval_accuracy", \
"value": 9.0, "metadata": {"file": "cb.py", "lineno": 5, "samples_count": 448}}
0: :::MLLOG {"namespace": "", "time_ms": 19, "event_type": "POINT_IN_TIME", "key": "tracked_stats", \
"value": {"train_step_time": 19.1, "reduced_train_loss": 4.125}, \
"metadata": {"file": "cb.py", "lineno": 4, "step": 896.0}}
"""
MLPERF_LORA = """\
:::MLLOG {"namespace": "", "time_ms": 17, "event_type": "POINT_IN_TIME", "key": "train_loss", "value": 4.25, \
"metadata": {"file": "cb.py", "lineno": 71, "samples_count": 400, "lr": 0.0005}}
:::MLLOG {"namespace": "", "time_ms": 18, "event_type": "POINT_IN_TIME", "key": "train_loss", "value": 4.125, \
"metadata": {"file": "cb.py", "lineno": 71, "samples_count": 800, "lr": 0.0005}}
"""
GOLF = """\
warmup_step: 20/20
1/20000 train_loss: 4.2500 train_time: 0.0m tok/s: 8671604
2/20000 train_loss: 4.1250 train_time: 0.0m tok/s: 8494942
"""
FAIRSEQ = """\
2022-01-01 10:00:00 | INFO | train_inner | {"epoch": 1, "loss": "4.25", "num_updates": "10", "gnorm": "0.75"}
2022-01-01 10:00:09 | INFO | train_inner | {"epoch": 1, "loss": "4.125", "num_updates": "20", "gnorm": "0.5"}
"""
TQDM = (
    "Epoch 0:   2%|▏         | 3/150 [00:00<00:07, 19.1it/s, v_num=0, train_loss=4.250]\r"
    "Epoch 0:   3%|▎         | 4/150 [00:00<00:07, 19.2it/s, v_num=0, train_loss=4.125]\n"
)
PLAIN = """\
Epoch [1/10], Step [100/1000], Loss: 4.2500
Epoch [1/10], Step [200/1000], Loss: 4.1250
"""
NUMBERED = """\
100: loss 4.25
200: loss 4.125
"""


@pytest.mark.parametrize(
    ("log", "steps", "norms"),
    [
        pytest.param(MEGATRON, (310, 320), (0.75, 0.5), id="megatron"),
        pytest.param(MEGATRON.replace("lm loss:", "lm-loss:"), (310, 320), (0.75, 0.5), id="megatron-deepspeed"),
        pytest.param(MEGATRON.replace("lm loss:", "lm_loss:"), (310, 320), (0.75, 0.5), id="gpt-neox"),
        pytest.param(TORCHTITAN, (3, 4), (0.75, 0.5), id="torchtitan"),
        pytest.param(NANOGPT, (0, 10), None, id="nanogpt"),
        pytest.param(NANOCHAT, (0, 1), None, id="nanochat"),
        pytest.param(LLMC_LOG, (0, 1), (0.75, 0.5), id="llmc-main.log"),
        pytest.param(LLMC_STDOUT, (1, 2), (0.75, 0.5), id="llmc-stdout"),
        pytest.param(LLMC_PYTHON, (1, 2), (0.75, 0.5), id="llmc-python"),
        pytest.param(MODDED, (1, 2), None, id="modded-nanogpt"),
        pytest.param(BUILD_NANOGPT, (0, 1), None, id="build-nanogpt"),
        pytest.param(MLPERF, (448, 896), None, id="mlperf"),
        pytest.param(MLPERF_LORA, (400, 800), None, id="mlperf-lora"),
        pytest.param(GOLF, (1, 2), None, id="parameter-golf"),
        pytest.param(FAIRSEQ, (10, 20), (0.75, 0.5), id="fairseq"),
        pytest.param(TQDM, (3, 4), None, id="tqdm"),
        pytest.param(PLAIN, (100, 200), None, id="plain"),
        pytest.param(NUMBERED, (100, 200), None, id="numbered"),
    ],
)
def test_line_formats(log: str, steps: tuple[int, ...], norms: tuple[float, ...] | None, tmp_path: Path) -> None:
    curve = read(tmp_path, log)
    assert curve.format == "text"
    assert curve.steps == steps
    assert curve.losses == (4.25, 4.125)
    assert curve.grad_norms == norms
    assert curve.notes == ()


@pytest.mark.parametrize(
    "line",
    [
        "iter 1: loss {}, time 372.77ms, mfu 21.20%",
        "step    1/19560 | loss {} (+nanz)| norm {} (+nanz)| lr 8.57e-07",
        "step 00001 (0.00%) | loss: {} | lrm: 1.00",
        "step:1/5100 train_loss:{} train_time:23767ms step_avg:nanms",
        "s:1 trl:{} lr:0.000001 norm:{}",
        "1 train {}",
        "1/20000 train_loss: {} train_time: 0.0m",
        " iteration        1/     100 | lm loss: {} | loss scale: 1.0 | grad norm: {} |",
        "\x1b[31mstep:  1  \x1b[32mloss:  {}  \x1b[38;2;180;60;0mgrad_norm:  {}\x1b[39m",
        "Epoch [1/10], Step [1/1000], Loss: {}",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "INF"])
def test_nan_and_infinity_in_every_line_format(line: str, value: str, tmp_path: Path) -> None:
    curve = read(tmp_path, line.format(value, value) + "\n")
    assert curve.steps == (1,)
    assert same(curve.losses, [float(value)])
    assert curve.grad_norms is None or same(curve.grad_norms, [float(value)])


@pytest.mark.parametrize("spelling", ["nan", "NaN", "-nan", "inf", "-Infinity", "1.#QNAN", "tensor(nan)"])
def test_a_loss_that_is_not_finite_is_a_point(spelling: str, tmp_path: Path) -> None:
    curve = read(tmp_path, f"step 1 | loss: 3.5\nstep 2 | loss: {spelling} | lr 1e-3\nstep 3 | loss: 3.25\n")
    assert curve.steps == (1, 2, 3)
    assert not math.isfinite(curve.losses[1])


def test_thousands_may_be_parted_by_commas(tmp_path: Path) -> None:
    curve = read(tmp_path, "step 1,000 | loss 1,234.5 | tok/s 29,001\nstep 2,000,000, loss 2.5\n")
    assert curve.steps == (1000, 2_000_000)
    assert curve.losses == (1234.5, 2.5)


def megatron(step: int, middle: str, skipped: int, nan: int) -> str:
    return (
        f" iteration {step:8d}/     100 | learning rate: 1.0E-04 |{middle} loss scale: 1.0 | grad norm: nan | "
        f"number of skipped iterations: {skipped:3d} | number of nan iterations: {nan:3d} |\n"
    )


def test_megatron_leaves_out_a_loss_that_is_nan_and_one_whose_step_was_skipped(tmp_path: Path) -> None:
    log = (
        megatron(1, "", 1, 0)  # overflow while the loss scale is sought: no loss, and no sign of trouble
        + megatron(2, " lm loss: 4.000000E+00 |", 0, 0)
        + megatron(3, "", 0, 0)
        + megatron(4, "", 1, 1)
        + megatron(5, " lm loss: 4.500000E+00 |", 0, 0)
        + " iteration        6/     100 | learning rate: 1.0E-04 |\n"  # cut short: says nothing of its loss
    )
    curve = read(tmp_path, log)
    assert curve.steps == (2, 3, 4, 5)
    assert same(curve.losses, [4.0, NAN, NAN, 4.5])
    assert any("2 iterations" in note for note in curve.notes)


def test_of_interleaved_ranks_one_is_read(tmp_path: Path) -> None:
    lines = [f"[rank{rank}]: step: {step} loss: {3 + rank + step / 8}" for step in range(1, 20) for rank in (1, 0, 2)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.steps == tuple(range(1, 20))
    assert curve.losses == tuple(4 + step / 8 for step in range(1, 20))
    assert any("3 ranks" in note and "rank 1 is read" in note for note in curve.notes)


@pytest.mark.parametrize("prefix", ["[default{}]: ", "{}: ", "[1,{}]<stdout>: ", "[Rank {}] ", "rank={} "])
def test_ways_to_name_the_rank(prefix: str, tmp_path: Path) -> None:
    lines = [prefix.format(rank) + f"step {step} loss {rank}.5" for step in range(5) for rank in (0, 3)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.losses == (0.5,) * 5


def test_a_run_that_goes_on_under_another_rank_is_whole(tmp_path: Path) -> None:
    lines = [f"[default7]: step {step} loss 3.5" for step in range(10)]
    lines += [f"[default3]: step {step} loss 2.5" for step in range(8, 20)]
    curve = read(tmp_path, "\n".join(lines))
    assert curve.steps == tuple(range(20))
    assert curve.losses == (3.5,) * 8 + (2.5,) * 12


def test_bytes_that_are_no_utf8_cost_their_line_at_most(tmp_path: Path) -> None:
    curve = read(tmp_path, b"caf\xe9 \xff\xfe\nstep 1 loss 3.5\nstep 2 l\xffoss 3.25\nstep 3 loss 3.0 \xe9\n")
    assert curve.steps == (1, 3)


def test_utf16_as_windows_shells_redirect(tmp_path: Path) -> None:
    assert read(tmp_path, NANOGPT.replace("\n", "\r\n").encode("utf-16")).losses == (4.25, 4.125)


def test_a_training_loss_in_code_alone_is_none(tmp_path: Path) -> None:
    log = "total_loss = 0.0\nstep:0/100 val_loss:9.5\nstep:10/100 val_loss:8.5\n"
    with pytest.raises(UserError, match=r"no column is called like a training loss \(found: .*val_loss.*--loss-key"):
        read(tmp_path, log)
    assert read(tmp_path, log, loss="val_loss").losses == (9.5, 8.5)
