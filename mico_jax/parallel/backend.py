"""Check that JAX has a device to compute on."""

from __future__ import annotations

import os

import jax

from mico_jax.config import ConfigError


def require_backend() -> str:
  """The platform that JAX computes on, such as "cpu".

  Raises:
    ConfigError: if the platform of JAX_PLATFORMS is not available, or another
      process holds the devices.
  """
  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # what JAX raises here
    platforms = os.environ.get("JAX_PLATFORMS")
    reason = " ".join(str(error).split())[:240] or "it is not installed"
    subject = f"JAX_PLATFORMS={platforms}: JAX" if platforms else "JAX"
    raise ConfigError(
      f"{subject} has no device to compute on ({reason}); unset JAX_PLATFORMS, "
      "or install what the platform needs, such as 'mico-jax[cuda]' or "
      "'mico-jax[tpu]', and see mico-jax doctor."
    ) from error
