"""One look for each scheme, the same in every figure and whatever subset of schemes is shown.

Colours are of the Okabe-Ito and Paul Tol sets, which readers with colour-vision deficiency can tell apart;
with more schemes than such colours, marker and line style tell the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LineStyle = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True, slots=True)
class Style:
    """How one scheme is drawn."""

    color: str
    """Hex RGB."""
    marker: str
    """Matplotlib marker."""
    linestyle: LineStyle
    """Matplotlib line style."""


_KNOWN = {
    "preln": Style("#000000", "o", "-"),
    "soft_temp": Style("#882255", "s", "--"),
    "soft_clip": Style("#888888", "D", ":"),
    "sigma_reparam": Style("#E69F00", "^", "-."),
    "layerscale": Style("#999933", "v", "--"),
    "soft_cap": Style("#56B4E9", "*", "-."),
    "qknorm": Style("#0072B2", "p", "-"),
    "qk_fc_norm": Style("#CC79A7", "h", "--"),
    "qkv_norm": Style("#D55E00", "<", "-"),
    "qknorm_cap": Style("#009E73", ">", "--"),
    "simplenorm": Style("#AA3377", "P", "-"),
    "angpt": Style("#228833", "X", "-"),
    "ngpt": Style("#66CCEE", "d", "--"),
    "vanilla_init": Style("#BBBBBB", "o", "--"),
    "embed_detach": Style("#997700", "s", "-."),
    "scaled_embed": Style("#994455", "D", "-"),
    "embed_ln": Style("#004488", "^", "--"),
    "xavier_init": Style("#EE99AA", "v", ":"),
    "peri_ln": Style("#332288", "*", "-"),
    "olmo2": Style("#44AA99", "p", "-."),
    "hybridnorm": Style("#DDAA33", "h", "-"),
    "post_ln": Style("#555555", "<", "-."),
    "deepnorm": Style("#661100", ">", ":"),
    "dyt": Style("#6699CC", "P", "--"),
}

_OTHER_COLORS = ("#117733", "#AA4499", "#AA4466", "#4477AA", "#225555", "#BBCC33")
_OTHER_MARKERS = ("o", "s", "D", "^", "v", "p", "*", "h", "<", ">")
_OTHER_LINESTYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")


def style_of(scheme: str) -> Style:
    """The look of a scheme: fixed for the known ones, by a hash of the name for any other.

    With modifiers (``qknorm+zloss``) it has its scheme's colour, and a marker and a line style of its own.
    """
    if scheme in _KNOWN:
        return _KNOWN[scheme]
    color, marker, linestyle = hashlib.sha256(scheme.encode()).digest()[:3]
    base = _KNOWN.get(scheme.split("+")[0])
    markers = [m for m in _OTHER_MARKERS if base is None or m != base.marker]
    linestyles = [line for line in _OTHER_LINESTYLES if base is None or line != base.linestyle]
    return Style(
        base.color if base else _OTHER_COLORS[color % len(_OTHER_COLORS)],
        markers[marker % len(markers)],
        linestyles[linestyle % len(linestyles)],
    )


def in_order(schemes: Iterable[str]) -> list[str]:
    """Each scheme once: the known ones from the baseline on, each before its modified ones; then the others by name."""
    known = list(_KNOWN)

    def place(scheme: str) -> int:
        base = scheme.split("+")[0]
        return known.index(base) if base in _KNOWN else len(known)

    return sorted(set(schemes), key=lambda s: (place(s), s))
