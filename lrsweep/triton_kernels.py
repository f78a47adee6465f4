"""Triton, where it is installed, for the modules that hold our GPU kernels."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch built without CUDA comes without it
    triton = tl = None

__all__ = ["let_others_in", "multiprocessors", "run_on", "tl", "triton"]

_CARVEOUT, _ALL = 9, 100
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent."""


def run_on(tensor: Tensor) -> bool:
    """Whether kernels can run on the tensor; they compute in fp32, so none takes float64."""
    return triton is not None and tensor.is_cuda and tensor.dtype != torch.float64


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; Triton's interpreter, which runs programs one after the other, gets by with one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def let_others_in(launched: Any) -> None:
    """Let programs of other kernels start on the multiprocessors that this one takes.

    A multiprocessor splits its memory into cache and shared memory as the first of its programs asks, and splits it
    anew only once it has run dry: programs that want more shared memory than is left wait until then, however
    few those are that run. From its next launch on, the kernel asks for all of it.

    Args:
        launched: what a launch returned; the interpreter's None is nobody's.
    """
    if launched is not None:
        _ask_for_all_shared_memory(launched.function)


@functools.cache
def _ask_for_all_shared_memory(function: int) -> None:
    # A preference: where there is no such driver, or it declines, programs only wait.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuFuncSetAttribute(ctypes.c_void_p(function), _CARVEOUT, _ALL)
