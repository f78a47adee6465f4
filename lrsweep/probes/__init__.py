"""What is measured in a step: pure functions on activations, all on the device, none waited for."""

from lrsweep.probes.stats import at_least_fp32, causal_logit_stats, causal_rms, products, token_norms

__all__ = ["at_least_fp32", "causal_logit_stats", "causal_rms", "products", "token_norms"]
