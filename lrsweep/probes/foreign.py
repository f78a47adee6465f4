"""Measures the layers of a model that lrsweep did not build, in its own forward pass, eager or compiled.

Forward hooks see the outputs of linear layers, and a torch function mode what enters the softmax; both are traced into
a compiled model's graph, and nothing waits for the device until a reading is asked for.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import nn

from lrsweep.errors import UserError
from lrsweep.host_copy import begin_copy
from lrsweep.probes.layers import find_places
from lrsweep.probes.pool import EMPTY, Pool
from lrsweep.probes.watch import Switch, is_watched, watch_logits, watch_output

_NORMS, _LOGITS = ("l2_rms", "l2_max"), ("logit_rms", "logit_max")
Rows = dict[tuple[int, str], list[float]]
"""(mean square, number, largest) by layer and site."""
Fetched = Callable[[], Rows]
"""Waits for a copy that has begun."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured since the reading before."""

    values: dict[tuple[int, str, str], float]
    """By layer, site and statistic. What was not measured is absent; NaN is what a model that broke gives."""

    def __getitem__(self, key: tuple[int, str, str]) -> float:
        return self.values[key]

    def flat(self) -> dict[str, float]:
        """The same under one name each, as ``layer03/fc2/l2_rms``: for a logger, or for a detector's signals."""
        return {f"layer{layer:02d}/{site}/{stat}": value for (layer, site, stat), value in self.values.items()}


class Probe:
    """Output norms of the linear layers of a GPT, and its attention logits.

    Attach it after the model is on its device and before ``torch.compile``; read it after ``backward``. Forward
    passes without gradients, as in evaluation, are not measured. Statistics, each over all tokens (of this process)
    since the last reading:

    - ``l2_rms``, ``l2_max`` of the sites ``qkv``, ``proj``, ``fc1``, ``fc2``: RMS over tokens of the L2 norm of a
      token's output, and the largest token's;
    - ``logit_rms``, ``logit_max`` of the site ``attn``: RMS and maximum of what enters the softmax, over all pairs
      that the mask lets through.

    Args:
        model: a GPT, bare or inside DDP, FSDP or the like.
        sites: names of the modules of each site, as regular expressions that match the whole name; see
            :func:`~lrsweep.probes.layers.find_places`. None: transformers' and other well-known names.
        logits: whether to measure the attention logits: never, at every reading, or at every so many readings.
        device: where to keep the statistics; None: with each layer's weights.

    Raises:
        UserError: the model is compiled already, or its layers were not found.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Sequence[str]] | None = None,
        *,
        logits: bool | int = False,
        device: torch.device | str | None = None,
    ) -> None:
        _refuse_compiled(model)
        places = find_places(model, sites)
        if logits and not any(place.site == "attn" for place in places):
            raise UserError("logits need the modules that call the softmax: add 'attn': [names or regexes] to sites")
        if logits and any(is_watched(module) for place in places for module in place.modules):
            raise UserError("another probe watches the logits of this model: detach() it first")
        self._logits_every = int(logits)
        self._logits = Switch(on=bool(logits))
        self._readings = 0
        self._checked = False
        self._late: Fetched | None = None
        self._pools = [
            Pool(place, _device_of(place.modules[0], device)) for place in places if logits or place.site != "attn"
        ]
        groups: dict[torch.device, list[Pool]] = defaultdict(list)
        for pool in self._pools:
            groups[pool.moments.device].append(pool)
        self._by_device = [(pools, torch.tensor(EMPTY, device=where)) for where, pools in groups.items()]
        self._undo = [_allow_side_effects_under_checkpoint()]
        for pool in self._pools:
            for part, module in enumerate(pool.place.modules):
                if pool.place.site == "attn":
                    self._undo.append(watch_logits(module, pool, self._logits))
                else:
                    self._undo.append(watch_output(module, pool, part))

    @property
    def modules(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """Names of the modules measured, by layer and site; several are one site as if concatenated."""
        return {pool.key: pool.place.names for pool in self._pools}

    def read(self) -> Reading:
        """What all forward passes since the last reading add up to; waits for the device once and moves one tensor.

        Raises:
            UserError: at the first reading, if nothing was measured.
        """
        return self._reading(self._fetch())

    def read_late(self) -> Reading | None:
        """As :meth:`read`, one call late: begins this reading and returns the one that the last call began.

        The host then never waits for the step it has just launched, so that a reading at every step costs a step
        nothing. None at the first call; the last reading begun is had by one call more.

        Raises:
            UserError: at the second call, if nothing was measured before the first.
        """
        late, self._late = self._late, self._fetch()
        return None if late is None else self._reading(late)

    def _reading(self, arrived: Fetched) -> Reading:
        rows = arrived()
        if not self._checked:
            self._check(rows)
            self._checked = True
        values = {}
        for (layer, site), (square, count, largest) in rows.items():
            if count != 0:
                rms_name, max_name = _LOGITS if site == "attn" else _NORMS
                values[layer, site, rms_name] = math.sqrt(square)
                values[layer, site, max_name] = largest
        return Reading(values)

    def detach(self) -> None:
        """Leave the model as it was. A compiled one keeps measuring, unread, until it is compiled anew."""
        self._logits.on = False
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _fetch(self) -> Fetched:
        """Begin the copies of (mean square, number, largest) by layer and site, one a device; the pools are emptied."""
        self._readings += 1
        self._logits.on = bool(self._logits_every) and self._readings % self._logits_every == 0
        copies = []
        for pools, empty in self._by_device:
            moments = [pool.moments for pool in pools]
            copies.append(([pool.key for pool in pools], begin_copy(torch.stack(moments))))
            torch._foreach_copy_(moments, [empty] * len(moments))

        def arrived() -> Rows:
            rows: Rows = {pool.key: [] for pool in self._pools}
            for keys, copy in copies:
                rows |= zip(keys, copy().tolist(), strict=True)
            return rows

        return arrived

    def _check(self, rows: Mapping[tuple[int, str], Sequence[float]]) -> None:
        """Say what a silent layer means: a compiler does not look for hooks in code that it has compiled before."""
        silent = {key: names for key, names in self.modules.items() if rows[key][1] == 0}
        logits = {key for key in rows if key[1] == "attn"}
        if rows.keys() - logits and not rows.keys() - logits - silent.keys():
            raise UserError(
                "nothing was measured. Was there a forward pass with gradients since Probe(model)? If so, it ran code "
                "that was compiled before the probe was attached, maybe for another model of the same class: call "
                "torch.compiler.reset() after Probe(model) and before the first step"
            )
        if logits and logits <= silent.keys():
            raise UserError(
                f"no attention logits were seen in {silent[min(logits)][0]} or any other layer: it calls neither "
                "scaled_dot_product_attention nor softmax. In transformers choose attn_implementation='sdpa', "
                "elsewhere that function in place of a kernel of its own, or leave logits off"
            )
        for names in silent.values():
            warnings.warn(f"nothing was measured at {', '.join(names)}", stacklevel=3)


def _device_of(module: nn.Module, device: torch.device | str | None) -> torch.device:
    weight = next(module.parameters(), None)
    if device is None:
        return weight.device if weight is not None else torch.device("cpu")
    return torch.device(device)


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise UserError(
                f"{type(model).__name__} is compiled already, and compiled code does not look for new hooks: "
                "call Probe(model) first and torch.compile(model) after it"
            )


def _allow_side_effects_under_checkpoint() -> Callable[[], None]:
    """Let the compiler trace q, k and v being added up inside a checkpointed block, once, in the first forward."""
    config = torch._dynamo.config
    before = config.skip_fwd_side_effects_in_bwd_under_checkpoint
    config.skip_fwd_side_effects_in_bwd_under_checkpoint = True

    def undo() -> None:
        config.skip_fwd_side_effects_in_bwd_under_checkpoint = before

    return undo
