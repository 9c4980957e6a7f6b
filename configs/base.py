"""All defaults: the `ConfigDict` that every shipped config starts from."""

import ml_collections

from mico_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """The defaults of `mico_jax.config.Config`."""
  return config_lib.to_config_dict(config_lib.Config())
