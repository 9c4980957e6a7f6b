"""Whether JAX can compute here at all, said before anything is opened."""

from __future__ import annotations

import os

import jax

from mico_jax.config import ConfigError


def require_backend() -> str:
  """The name of the platform that JAX computes on.

  Raises:
    ConfigError: if JAX_PLATFORMS asks for one that is not there, or the
      devices are held by another process.
  """
  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # JAX has no kind of its own
    asked = os.environ.get("JAX_PLATFORMS")
    reason = " ".join(str(error).split())[:240] or "it is not installed"
    what = f"JAX_PLATFORMS={asked}: JAX" if asked else "JAX"
    raise ConfigError(
      f"{what} has no device to compute on ({reason}); unset JAX_PLATFORMS, or "
      "install what the platform needs, such as 'mico-jax[cuda]' or "
      "'mico-jax[tpu]', and see mico-jax doctor."
    ) from error
