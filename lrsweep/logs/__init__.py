"""Readers of training logs of every common kind: from a file to steps, losses and gradient norms. No torch."""

from lrsweep.logs.columns import Keys
from lrsweep.logs.curve import Curve
from lrsweep.logs.read import FORMATS, Format, read_log

__all__ = ["FORMATS", "Curve", "Format", "Keys", "read_log"]
