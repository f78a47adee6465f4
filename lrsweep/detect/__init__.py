"""Divergence detection on a training run's own numbers; the standard library and nothing else."""

from lrsweep.detect.config import DetectorConfig
from lrsweep.detect.detector import DivergenceDetector
from lrsweep.detect.offline import Scan, scan
from lrsweep.detect.records import Event, EventKind, Verdict, VerdictKind

__all__ = [
    "DetectorConfig",
    "DivergenceDetector",
    "Event",
    "EventKind",
    "Scan",
    "Verdict",
    "VerdictKind",
    "scan",
]
