"""What is measured in a step: pure functions on activations, all on the device, none waited for."""

from lrsweep.probes.stats import causal_logit_stats, causal_rms, token_norms

__all__ = ["causal_logit_stats", "causal_rms", "token_norms"]
