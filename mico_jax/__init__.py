"""mico_jax: omni-modal pretraining in JAX."""

__version__ = "0.1.0"
