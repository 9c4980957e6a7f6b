"""Data: sources, order, decoding, batches. Grain and NumPy only, no JAX calls.

The names live in their modules (`mico_jax.data.pipeline.Pipeline`, ...); this
file imports none of them, so that `mico_jax` itself starts fast.
"""
