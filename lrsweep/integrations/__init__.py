"""The divergence detector inside other people's trainers.

This package needs torch alone; each trainer has a module of its own, imported by name:
``transformers``, ``lightning``, ``fabric``, ``accelerate``, ``composer``, ``torchtitan``, ``olmo_core``, ``megatron``.
"""

from lrsweep.integrations.monitor import Action, DivergenceError, StabilityMonitor

__all__ = ["Action", "DivergenceError", "StabilityMonitor"]
