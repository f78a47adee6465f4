"""Finds the linear layers of a GPT's blocks by their names, whoever wrote the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lrsweep.errors import UserError

KNOWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (
        ("attn.c_attn",),
        ("attn.qkv",),
        ("attn.attn",),
        ("attn.c_q", "attn.c_k", "attn.c_v"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.qkv_proj",),
        ("attention.query_key_value",),
    ),
    "proj": (("attn.c_proj",), ("attn.proj",), ("self_attn.o_proj",), ("attention.dense",)),
    "fc1": (
        ("mlp.c_fc",),
        ("mlp.fc1",),
        ("mlp.fc",),
        ("mlp.fc_1", "mlp.fc_2"),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.gate_up_proj",),
        ("mlp.dense_h_to_4h",),
    ),
    "fc2": (("mlp.c_proj",), ("mlp.fc2",), ("mlp.proj",), ("mlp.down_proj",), ("mlp.dense_4h_to_h",)),
    "attn": (("attn",), ("self_attn",), ("attention",)),
}
"""What a site's modules may be called inside a block. Several names in one entry are one site together, as if their
outputs were concatenated: separate q, k and v are ``qkv``, gate and up are ``fc1``. ``attn`` is the module that calls
the softmax; its output is not measured."""

NEEDED = ("qkv", "proj", "fc2")
"""Sites without which a model counts as unknown."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}


@dataclass(frozen=True, slots=True)
class Place:
    """The modules that are one site of one layer."""

    layer: int
    site: str
    names: tuple[str, ...]
    """Without the parts that DDP, FSDP, ``torch.compile`` and checkpoint wrappers add."""
    modules: tuple[nn.Module, ...]


def find_places(model: nn.Module, sites: Mapping[str, Sequence[str]] | None) -> list[Place]:
    """Every site of every layer, layers in order.

    Args:
        model: the model, wrapped or not.
        sites: names of the modules of each site, as regular expressions that match the whole name. The layer is the
            first whole number in a name (0 if it has none). None: by :data:`KNOWN`.

    Raises:
        UserError: a site is not found, or its modules belong to two stacks of blocks.
    """
    modules = {_clean(name): module for name, module in model.named_modules()}
    chosen = _known(modules) if sites is None else _named(modules, sites)
    found: dict[tuple[int, str], list[str]] = defaultdict(list)
    stacks: set[str] = set()
    for site, layer, stack, name in chosen:
        found[layer, site].append(name)
        stacks.add(stack)
    if sites is None:
        _require(type(model).__name__, modules, {site for _, site in found})
    if len(stacks) > 1:
        raise UserError(
            f"layers of {len(stacks)} stacks of blocks ({', '.join(sorted(stacks))}): probe one of them, "
            f"either as Probe(model.{sorted(stacks)[0].rpartition('.')[0] or '…'}) or by regexes that match only it"
        )
    return [
        Place(layer, site, tuple(names), tuple(modules[name] for name in names))
        for (layer, site), names in sorted(found.items(), key=lambda item: item[0][0])
    ]


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _known(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, int, str, str]]:
    """(site, layer, stack, name) of each module whose name ends as one of :data:`KNOWN` after a block's number."""
    blocks: dict[tuple[str, int], set[str]] = defaultdict(set)
    for name in modules:
        for number in re.finditer(r"(?:^|(?<=\.))\d+(?=\.)", name):
            blocks[name[: number.start()].rstrip("."), int(number[0])].add(name[number.end() + 1 :])
    linear_sites = [site for site in KNOWN if site != "attn"]
    for (stack, layer), paths in blocks.items():
        here = [(site, names) for site in KNOWN for names in KNOWN[site] if paths.issuperset(names)]
        if not any(site in linear_sites for site, _ in here):
            continue
        for site, names in here:
            for name in names:
                yield site, layer, stack, f"{stack}.{layer}.{name}" if stack else f"{layer}.{name}"


def _named(modules: Mapping[str, nn.Module], sites: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int, str, str]]:
    for site, patterns in sites.items():
        if isinstance(patterns, str):
            raise UserError(f"sites[{site!r}] is a list of names or regexes, not the string {patterns!r}")
        for pattern in patterns:
            names = [name for name in modules if re.fullmatch(pattern, name)]
            if not names:
                raise UserError(f"sites[{site!r}]: no module is named {pattern!r}; there are {_linear_names(modules)}")
            for name in names:
                number = re.search(r"(?:^|(?<=\.))\d+(?=\.|$)", name)
                stack = name[: number.start()].rstrip(".") if number else ""
                yield site, int(number[0]) if number else 0, stack, name


def _require(model_name: str, modules: Mapping[str, nn.Module], found: set[str]) -> None:
    missing = [site for site in NEEDED if site not in found]
    if missing:
        raise UserError(
            f"{model_name} is laid out like no known model: {', '.join(missing)} not found"
            f"{' beside ' + ', '.join(sorted(found)) if found else ''}. Name the layers, e.g. "
            r"Probe(model, {'qkv': [r'blocks\.\d+\.attn\.in_proj'], 'proj': […], 'fc2': […]}); "
            f"there are {_linear_names(modules)}"
        )


def _linear_names(modules: Mapping[str, nn.Module]) -> str:
    """Names of the modules that hold a matrix, each number as N."""
    names = dict.fromkeys(
        re.sub(r"(?:^|(?<=\.))\d+(?=\.|$)", "N", name)
        for name, module in modules.items()
        if not isinstance(module, nn.Embedding) and getattr(getattr(module, "weight", None), "ndim", 0) == 2
    )
    return ", ".join(names) or "no linear layers"
