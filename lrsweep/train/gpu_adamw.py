"""AdamW over all tensors in one GPU kernel, which also adds up how far the weights have moved.

An optimizer step is bound by memory. To learn ‖Δθ‖ and ‖θ‖ from a copy of the weights takes as much traffic again; here
both are summed while old and new value of a weight are in registers.

Legend: K kinds of weights, with and without a bf16 copy, Q programs, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsweep.triton_kernels import let_others_in, multiprocessors, tl, triton

_COLUMNS = 7
"""Of the table: addresses of weight, gradient, first and second moment, bf16 copy; number of elements; group."""
_PROGRAMS, _STAGES = 2, 3
"""Programs of a multiprocessor that update, and blocks of each on their way from memory into shared memory, where they
take no registers: enough to keep the memory busy, and so few programs that those that multiply queries and keys find
room beside them.
"""
_READERS = 12
"""Programs of a multiprocessor that only read gradients."""
_ROUNDS = 16
"""Chunks of a program to aim at, so that all end at about the same time."""
_BLOCK, _READ_BLOCK = 512, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One weight and its moments, all contiguous fp32."""

    weight: Tensor
    first: Tensor
    second: Tensor
    group: int
    """Index into learning rates and decays."""
    half: Tensor | None = None
    """bf16 copy of the weight that is kept up to date, and whose gradient, bf16 too, is the weight's."""

    @property
    def holder(self) -> Tensor:
        """Whose gradient is applied."""
        return self.weight if self.half is None else self.half


class FusedAdamW:
    """The update of a fixed list of slots.

    Args:
        slots: what to update.
        lr: the learning rate, a scalar on the device.
        factors: of each group, what ``lr`` is multiplied by.
        decays: weight decay of each group.
        betas: decay of the first and of the second moment.
        eps: ε.
        steps: number of finite steps, this one included, a scalar on the device.

    Slots with a bf16 copy go by one launch, those without by another, whose sums stand side by side.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        lr: Tensor,
        factors: Sequence[float],
        decays: Sequence[float],
        betas: tuple[float, float],
        eps: float,
        steps: Tensor,
    ) -> None:
        kinds = [[slot for slot in slots if (slot.half is None) == whole] for whole in (True, False)]
        kinds = [kind for kind in kinds if kind]
        programs = multiprocessors(steps.device)
        self._squared_KxQ = torch.zeros(len(kinds), _READERS * programs, device=steps.device)
        self._moved_Kx2xQ = torch.zeros(len(kinds), 2, _PROGRAMS * programs, device=steps.device)
        of_groups_2xG = torch.tensor([factors, decays], dtype=torch.float32, device=steps.device)
        self._kinds = [
            _Alike(kind, lr, of_groups_2xG, betas, eps, steps, squared, moved)
            for kind, squared, moved in zip(kinds, self._squared_KxQ, self._moved_Kx2xQ, strict=True)
        ]

    def warm_up(self) -> None:
        """Compile the kernels, by launching them on nothing."""
        for kind in self._kinds:
            kind.warm_up()

    def settle(self) -> None:
        """Fill the tables that captured steps read: while one is captured, nothing can be copied to the device."""
        for kind in self._kinds:
            kind.settle()

    def gradient_squares(self) -> Tensor:
        """Numbers (K, Q) that add up to the squares of all gradients."""
        for kind in self._kinds:
            kind.gradient_squares()
        return self._squared_KxQ

    def step(self, finite: Tensor, divisor: Tensor) -> Tensor:
        """Update in place from the weights' gradients divided by ``divisor``; nothing at all unless ``finite``.

        Args:
            finite: Boolean scalar.
            divisor: scalar.

        Returns:
            (K, 2, Q), whose K and Q add up to ‖Δθ‖² and ‖θ‖² before the update.
        """
        for kind in self._kinds:
            kind.step(finite, divisor)
        return self._moved_Kx2xQ


class _Alike:
    """The update of slots that all have a bf16 copy, or none; its programs write their sums where they are told."""

    def __init__(
        self,
        slots: Sequence[Slot],
        lr: Tensor,
        of_groups_2xG: Tensor,
        betas: tuple[float, float],
        eps: float,
        steps: Tensor,
        squared_Q: Tensor,
        moved_2xQ: Tensor,
    ) -> None:
        self._slots, self._lr, self._of_groups, self._steps = list(slots), lr, of_groups_2xG, steps
        self._betas, self._eps = betas, eps
        self._squared, self._moved = squared_Q, moved_2xQ
        self._device, self._has_half = steps.device, self._slots[0].half is not None
        total = sum(slot.weight.numel() for slot in self._slots)
        rounds = _ROUNDS * moved_2xQ.shape[1]
        self._chunk = min(65536, max(_READ_BLOCK, triton.next_power_of_2(total // rounds)))
        self._tables: dict[tuple[int, ...], Tensor] = {}
        self._spare: Tensor | None = None
        self._captured: list[tuple[tuple[int, ...], Tensor]] = []
        self._n_rows = len(self._rows([0] * len(self._slots)))

    def warm_up(self) -> None:
        table, zero = torch.zeros(1, dtype=torch.int64, device=self._device), torch.zeros((), device=self._device)
        self._launch_squares(table, n_rows=0)
        self._launch_step(table, zero > 0, zero, n_rows=0)

    def gradient_squares(self) -> None:
        self._launch_squares(self._table(self._gradients()), self._n_rows)

    def _launch_squares(self, table: Tensor, n_rows: int) -> None:
        _adamw_squares[(len(self._squared),)](
            table, self._squared, n_rows, HALF=self._has_half, BLOCK=_READ_BLOCK, COLUMNS=_COLUMNS, num_warps=4
        )

    def step(self, finite: Tensor, divisor: Tensor) -> None:
        self._launch_step(self._table(self._gradients()), finite, divisor, self._n_rows)

    def _launch_step(self, table: Tensor, finite: Tensor, divisor: Tensor, n_rows: int) -> None:
        beta1, beta2 = self._betas
        launched = _adamw[(self._moved.shape[1],)](
            table, self._lr, self._of_groups, self._steps, finite, divisor, self._moved,
            n_rows, self._of_groups.shape[1], beta1, beta2, self._eps,
            HALF=self._has_half, BLOCK=_BLOCK, COLUMNS=_COLUMNS, STAGES=_STAGES, num_warps=4,
        )  # fmt: skip
        let_others_in(launched)

    def _gradients(self) -> list[Tensor]:
        gradients = []
        for holder in (slot.holder for slot in self._slots):
            assert holder.grad is not None
            # Contiguous and from a multiple of 16 bytes on, as every tensor is that has its memory to itself.
            if not holder.grad.is_contiguous() or holder.grad.data_ptr() % 16:
                holder.grad = holder.grad.clone(memory_format=torch.contiguous_format)
            gradients.append(holder.grad)
        return gradients

    def settle(self) -> None:
        for addresses, table in self._captured:
            table.copy_(torch.from_numpy(self._rows(addresses)))
        if self._spare is None and self._captured:
            self._spare = torch.empty_like(self._captured[-1][1])

    def _table(self, gradients: Sequence[Tensor]) -> Tensor:
        addresses = tuple(g.data_ptr() for g in gradients)
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if not self._captured or self._captured[-1][0] != addresses:
                assert self._spare is not None, "a step runs uncaptured before it is captured"
                self._captured.append((addresses, self._spare))
                self._spare = None
            return self._captured[-1][1]
        if addresses not in self._tables:
            if len(self._tables) > 8:  # An uncaptured run, whose gradients wander.
                self._tables.clear()
            self._tables[addresses] = torch.from_numpy(self._rows(addresses)).to(self._device)
        if self._spare is None:
            # Made here, because memory taken within a capture has other uses earlier in the same graph.
            self._spare = torch.empty_like(self._tables[addresses])
        return self._tables[addresses]

    def _rows(self, gradients: Sequence[int]) -> NDArray[np.int64]:
        """The table: a row for each chunk of each slot."""
        parts = []
        for slot, gradient in zip(self._slots, gradients, strict=True):
            size = slot.weight.numel()
            starts = np.arange(0, size, self._chunk, dtype=np.int64)
            columns = [t.data_ptr() + 4 * starts for t in (slot.weight, slot.first, slot.second)]
            columns.insert(1, gradient + (2 if self._has_half else 4) * starts)
            columns.append((0 if slot.half is None else slot.half.data_ptr()) + 2 * starts)
            columns += [np.minimum(size - starts, self._chunk), np.full_like(starts, slot.group)]
            parts.append(np.stack(columns, axis=1))
        return np.concatenate(parts)


if triton is not None:

    @triton.jit
    def _block(
        weights, gradients, firsts, seconds, halves, moved, length, inside, finite,
        divisor, shrink, rate, beta1, beta2, bias1, bias2, eps, HALF: tl.constexpr,
    ):  # fmt: skip
        """Update one block, all of it where ``inside`` is None; the sums with its part."""
        if inside is None:
            old, g, first, second = tl.load(weights), tl.load(gradients), tl.load(firsts), tl.load(seconds)
            inside = finite
        else:
            old = tl.load(weights, mask=inside, other=0.0)
            g = tl.load(gradients, mask=inside, other=0.0)
            first = tl.load(firsts, mask=inside, other=0.0)
            second = tl.load(seconds, mask=inside, other=0.0)
            inside = inside & finite
        g = g.to(tl.float32) / divisor
        first += (1.0 - beta1) * (g - first)
        second = beta2 * second + (1.0 - beta2) * g * g
        new = old * shrink - rate / bias1 * first / (tl.sqrt(second) / bias2 + eps)
        tl.store(weights, new, mask=inside)
        tl.store(firsts, first, mask=inside)
        tl.store(seconds, second, mask=inside)
        if HALF:
            tl.store(halves, new.to(tl.bfloat16), mask=inside)
        change = tl.where(inside, new - old, 0.0)
        return moved + change * change, length + old * old

    @triton.jit(do_not_specialize=["n_rows"])
    def _adamw_squares(table_ptr, partial_ptr, n_rows, HALF: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
        """Sum of squares of a program's chunks of gradients."""
        gradient_type: tl.constexpr = tl.bfloat16 if HALF else tl.float32
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(tl.program_id(0), n_rows, tl.num_programs(0)):
            row = table_ptr + i * COLUMNS
            gradients = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(gradient_type)), 16)
            size = tl.load(row + 5).to(tl.int32)
            whole = size // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                g = tl.load(gradients + start + tl.arange(0, BLOCK)).to(tl.float32)
                total += g * g
            if whole < size:
                at = whole + tl.arange(0, BLOCK)
                g = tl.load(gradients + at, mask=at < size, other=0.0).to(tl.float32)
                total += g * g
        tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))

    @triton.jit(do_not_specialize=["n_rows", "n_groups"])
    def _adamw(
        table_ptr, lr_ptr, of_groups_ptr, steps_ptr, finite_ptr, divisor_ptr, partial_ptr, n_rows, n_groups,
        beta1, beta2, eps, HALF: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """A program's chunks: θ ← θ·(1 − η·λ) − η·m̂/(√v̂ + ε)."""
        gradient_type: tl.constexpr = tl.bfloat16 if HALF else tl.float32
        finite = tl.full([BLOCK], True, tl.int1) & (tl.load(finite_ptr) != 0)
        divisor = tl.load(divisor_ptr)
        steps = tl.load(steps_ptr)
        lr = tl.load(lr_ptr)
        bias1 = 1.0 - tl.exp2(steps * tl.log2(beta1))
        bias2 = tl.sqrt(1.0 - tl.exp2(steps * tl.log2(beta2)))
        moved = tl.zeros([BLOCK], tl.float32)
        length = tl.zeros([BLOCK], tl.float32)
        for i in range(tl.program_id(0), n_rows, tl.num_programs(0)):
            row = table_ptr + i * COLUMNS
            # All start on 16 bytes: four numbers go by one instruction.
            weights = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
            gradients = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(gradient_type)), 16)
            firsts = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16)
            seconds = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.float32)), 16)
            halves = tl.multiple_of(tl.load(row + 4).to(tl.pointer_type(tl.bfloat16)), 16)
            size = tl.load(row + 5).to(tl.int32)
            group = tl.load(row + 6)
            rate = lr * tl.load(of_groups_ptr + group)
            shrink = 1.0 - rate * tl.load(of_groups_ptr + n_groups + group)
            whole = size // BLOCK * BLOCK
            for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
                at = start + tl.arange(0, BLOCK)
                moved, length = _block(
                    weights + at, gradients + at, firsts + at, seconds + at, halves + at, moved, length, None,
                    finite, divisor, shrink, rate, beta1, beta2, bias1, bias2, eps, HALF,
                )  # fmt: skip
            if whole < size:
                at = whole + tl.arange(0, BLOCK)
                moved, length = _block(
                    weights + at, gradients + at, firsts + at, seconds + at, halves + at, moved, length, at < size,
                    finite, divisor, shrink, rate, beta1, beta2, bias1, bias2, eps, HALF,
                )  # fmt: skip
        tl.store(partial_ptr + tl.program_id(0), tl.sum(moved, 0))
        tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(length, 0))
