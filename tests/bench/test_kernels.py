"""Where a step's time goes: kernels by their names, as an H100's profile of a step has them."""

from __future__ import annotations

import inspect

import pytest
import torch

from lrsweep.bench.kernels import GROUPS, OTHER, group_of, kernel_ms
from tests.conftest import needs_triton, on_gpu
from tests.kernel_modules import KERNEL_MODULES


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_1x4x1", "attention"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 128>(void const*, void const*)", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_per_fused__to_copy_add_native_layer_norm_0", "norms"),
        ("triton_poi_fused_stack_transpose_1", "compiled"),
        ("void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int)", "embedding"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >", OTHER),
        ("Memset (Device)", OTHER),
    ],
)
def test_a_kernel_is_found_by_its_name(name: str, group: str) -> None:
    assert group_of(name) == group


@needs_triton
def test_every_kernel_of_our_own_has_a_group_of_its_module() -> None:
    """No two modules share one, but those of the small kernels around a step."""
    found = []
    for module in KERNEL_MODULES:
        # Those with a grid of their own; the others are parts of them.
        source = inspect.getsource(module)
        names = [name for name, value in vars(module).items() if hasattr(value, "arg_names") and f"{name}[" in source]
        assert names, module
        groups = {group_of(name) for name in names}
        assert len(groups) == 1, (module, names)
        found += groups
    assert sorted(found) == sorted([*GROUPS.keys() - {"attention", "products", "compiled"}, "bookkeeping"])


@on_gpu
def test_milliseconds_are_a_steps() -> None:
    """Of twice as many products twice the time, and as much a step."""
    x = torch.randn(2048, 2048, device="cuda")
    few, many = (kernel_ms(lambda n=n: [x @ x for _ in range(n)], n) for n in (4, 8))  # type: ignore[misc]
    assert few["products"] == pytest.approx(many["products"], rel=0.5)
    assert few["products"] > 0
