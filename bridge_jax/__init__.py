"""bridge_jax: SFT and reinforcement learning that cooperate (BRIDGE, arXiv 2509.06948), in JAX."""

__version__ = "0.1.0"
