"""Learning-rate stability sweeps and divergence detection for GPT pre-training."""

__version__ = "0.1.0"
