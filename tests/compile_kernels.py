"""Compiles every Triton kernel for GPUs that need not be there, and prints each one's name and target.

A program of its own, because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lrsweep.model import gpu_activation, gpu_embedding, gpu_heads, gpu_loss, gpu_norm
from lrsweep.probes import gpu_logits, gpu_parts, gpu_tokens
from lrsweep.train import gpu_adamw, gpu_step

Constants = Mapping[str, int | bool | None]
LOGITS = {"HARDWARE_TANH": True, "BLOCK": 64}
"""Of every variant of that kernel."""
NORM_TYPES = {
    "f_ptr": "*bf16",
    "normed_ptr": "*bf16",
    "normed_gradient_ptr": "*bf16",
    "of_f_ptr": "*bf16",
    "eps": "fp32",
}
"""Where a stream in fp32 is joined by what autocast has made."""
INTEGERS = dict.fromkeys(("windows_ptr", "orders_ptr", "order_ptr"), "*i32") | dict.fromkeys(
    ("window_ptr", "tokens_ptr", "targets_ptr"), "*i64"
)
RECORD = {"SITES": 4, "LAYERS": 32, "HEADS": 16, "BLOCK": gpu_step._BLOCK}
NO_NORM = {"NORMED": False, "CENTRED": False, "q_gain_ptr": None, "k_gain_ptr": None}
HEAD_TENSORS = "qkv_ptr", "q_ptr", "k_ptr", "of_q_ptr", "of_k_ptr", "of_v_ptr", "of_qkv_ptr"
KERNELS: list[tuple[object, dict[str, str], Constants]] = [
    *(
        (gpu_logits._logits, {"q_ptr": f"*{dtype}", "k_ptr": f"*{dtype}", "scale": "fp32", "cap": "fp32"}, constants)
        for dtype in ("bf16", "fp32")
        for width, padded in ((128, 128), (24, 32), (8, 16))
        for capped in (False, True)
        for constants in ({**LOGITS, "CAPPED": capped, "WIDTH": width, "PADDED": padded},)
    ),
    *(
        (gpu_tokens._token_moments, {}, {"TOKENS": 64} | {f"PADDED{i}": padded for i, padded in enumerate(widths)})
        for widths in ((1,) * 6, (16, 16, 32, 32, 128, 32))
    ),
    *(
        (kernel, types, {"HALF": half, "COLUMNS": gpu_adamw._COLUMNS, **blocks})
        for half in (False, True)
        for kernel, blocks, types in (
            (
                gpu_adamw._adamw,
                {"BLOCK": gpu_adamw._BLOCK, "STAGES": gpu_adamw._STAGES},
                {"finite_ptr": "*i1", "beta1": "fp32", "beta2": "fp32", "eps": "fp32"},
            ),
            (gpu_adamw._adamw_squares, {"BLOCK": gpu_adamw._READ_BLOCK}, {}),
        )
    ),
    *(
        (kernel, {"logits_ptr": f"*{dtype}", "z_loss": "fp32", "factor": "fp32"}, blocks)
        for dtype in ("bf16", "fp32")
        for kernel, blocks in (
            (gpu_loss._loss_forward, gpu_loss._FORWARD),
            (gpu_loss._loss_forward, gpu_loss._FORWARD_BESIDE),
            (gpu_loss._loss_backward, gpu_loss._BACKWARD),
        )
    ),
    *(
        (kernel, {"ids_ptr": "*i32", "places_ptr": "*i32"}, {"CHUNK": gpu_embedding._CHUNK, "COLUMNS": columns})
        for kernel in (gpu_embedding._embedding_walk, gpu_embedding._embedding_join)
        for columns in (1, 512)
    ),
    *(
        (kernel, NORM_TYPES, {**tile, "CENTRED": centred, constant: flag})
        for kernel, constant in ((gpu_norm._norm_forward, "MEASURED"), (gpu_norm._norm_backward, "TWO_TYPES"))
        for tile in ({"ROWS": 2, "COLUMNS": 2048}, {"ROWS": 64, "COLUMNS": 32})
        for centred in (False, True)
        for flag in (False, True)
    ),
    *(
        (kernel, dict.fromkeys(("h_ptr", "out_ptr", "gradient_ptr", "of_h_ptr"), "*bf16"), constants)
        for tile in ({"ROWS": 1, "COLUMNS": 2048}, {"ROWS": 16, "COLUMNS": 128})
        for gated in (False, True)
        for kernel, constants in (
            (gpu_activation._activation_forward, {**tile, "GATED": gated, "MEASURED": False}),
            (gpu_activation._activation_forward, {**tile, "GATED": gated, "MEASURED": True}),
            (gpu_activation._activation_backward, {**tile, "GATED": gated}),
        )
    ),
    *(
        (kernel, dict.fromkeys(HEAD_TENSORS, "*bf16") | {"eps": "fp32"}, {**tile, **norm, **constants})
        for tile in ({"ROWS": 1, "HEADS": 16, "HALF": 64}, {"ROWS": 8, "HEADS": 4, "HALF": 32})
        for norm, back in (
            (NO_NORM, {"qkv_ptr": None, "parts_ptr": None}),
            ({"NORMED": True, "CENTRED": False}, {}),
            ({"NORMED": True, "CENTRED": True}, {}),
        )
        for kernel, constants in (
            (gpu_heads._rotation_forward, {"MEASURED": False}),
            (gpu_heads._rotation_forward, {"MEASURED": True}),
            (gpu_heads._rotation_backward, back),
        )
    ),
    (gpu_norm._norm_gain, {}, {"ROWS": 128, "COLUMNS": 32}),
    *((gpu_parts._parts_together, {}, {"SUMS": sums, "BLOCK": gpu_parts._BLOCK}) for sums in (1, 2)),
    (gpu_step._step_take, INTEGERS, {"BLOCK": gpu_step._BLOCK}),
    (gpu_step._step_guard, {"live_ptr": "*i1", "finite_ptr": "*i1", "clip": "fp32"}, {"BLOCK": gpu_step._BLOCK}),
    *(
        (gpu_step._step_record, {"position_ptr": "*i64", "finite_ptr": "*i1"}, kinds | RECORD)
        for kinds in ({"SITED": False, "LOGITS": 0}, {"SITED": True, "LOGITS": 0}, {"SITED": True, "LOGITS": 2})
    ),
]
"""Kernel, types of arguments that are neither an fp32 pointer nor an int32, and constants and options."""
USUAL = {"table_ptr": "*i64", "targets_ptr": "*i64"}


def compile_for(capability: int) -> None:
    """Compile all of them to machine code for one compute capability."""
    for kernel, types, constants in KERNELS:
        names: list[str] = kernel.arg_names  # type: ignore[attr-defined]
        signature = {n: "constexpr" if n in constants else "*fp32" if n.endswith("_ptr") else "i32" for n in names}
        signature |= {n: t for n, t in (USUAL | types).items() if n in names}
        # Addresses of tensors, and strides as models have them, are multiples of 16.
        even = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith(("_ptr", "_row", "_head"))}
        source = ASTSource(kernel, signature, constexprs={n: constants[n] for n in names if n in constants}, attrs=even)
        options = {n: c for n, c in constants.items() if n not in names}
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
        assert binary, "no machine code"
        print(kernel.__name__, capability, flush=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        compile_for(int(argument))
