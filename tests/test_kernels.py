"""What the interpreter lets pass and a compiler or a GPU does not."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrsweep.triton_kernels import let_others_in
from tests.conftest import needs_triton, on_gpu

NAMES = {
    "_logits",
    "_token_moments",
    "_parts_together",
    "_step_take",
    "_step_guard",
    "_step_record",
    "_adamw",
    "_adamw_squares",
    "_loss_forward",
    "_loss_backward",
    "_embedding_walk",
    "_embedding_join",
    "_norm_forward",
    "_norm_backward",
    "_norm_gain",
    "_activation_forward",
    "_activation_backward",
    "_rotation_forward",
    "_rotation_backward",
}


@needs_triton
def test_every_kernel_compiles_without_a_gpu(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compile_kernels", "80", "90"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = {tuple(line.split()) for line in run.stdout.splitlines()}
    assert compiled == {(name, capability) for name in NAMES for capability in ("80", "90")}


def test_a_kernel_that_can_ask_for_nothing_has_run_all_the_same() -> None:
    let_others_in(None)
    let_others_in(SimpleNamespace(function=0))


@needs_triton
@on_gpu
def test_a_launched_kernel_asks_for_all_of_the_shared_memory() -> None:
    from lrsweep.model import gpu_loss

    vocab = 64
    logits_1xV, target_1 = torch.zeros(1, vocab, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    parts_3x1, log_z_1 = torch.zeros(3, 1, device="cuda"), torch.zeros(1, device="cuda")
    launched = gpu_loss._loss_forward[(1,)](
        logits_1xV, target_1, parts_3x1, log_z_1, 1, vocab, 0.0, 1.0, **gpu_loss._FORWARD
    )
    assert log_z_1.item() == pytest.approx(math.log(vocab))
    let_others_in(launched)
    carveout = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    assert driver.cuFuncGetAttribute(ctypes.byref(carveout), 9, ctypes.c_void_p(launched.function)) == 0
    assert carveout.value == 100
