"""Shipped configs, packaged as `mico_jax.configs`."""
