"""Contrastive loss over all pairs of a batch."""

from mico_jax.kernels.contrastive.api import BACKENDS as BACKENDS
from mico_jax.kernels.contrastive.api import (
  contrastive_loss as contrastive_loss,
)
