"""What is measured in a step: pure functions on activations, all on the device, none waited for.

:class:`Probe` puts them into models that lrsweep did not build.
"""

from lrsweep.probes.foreign import Probe, Reading
from lrsweep.probes.stats import at_least_fp32, causal_logit_stats, causal_logit_sums, products, token_squares

__all__ = [
    "Probe",
    "Reading",
    "at_least_fp32",
    "causal_logit_stats",
    "causal_logit_sums",
    "products",
    "token_squares",
]
