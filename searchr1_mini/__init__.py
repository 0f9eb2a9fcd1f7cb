"""Search-R1 on one GPU: reinforcement learning that teaches a language model to search (arXiv 2503.09516)."""

__version__ = "0.1.0"
