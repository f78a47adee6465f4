"""What the interpreter lets pass and a compiler does not: every kernel becomes machine code for an A100 and an H100."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import needs_triton

NAMES = {
    "_logits",
    "_token_moments",
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
