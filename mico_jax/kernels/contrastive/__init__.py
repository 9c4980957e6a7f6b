"""Contrastive loss over all pairs of the global batch."""

from mico_jax.kernels.contrastive.api import BACKENDS as BACKENDS
from mico_jax.kernels.contrastive.api import FORMS as FORMS
from mico_jax.kernels.contrastive.api import Pair as Pair
from mico_jax.kernels.contrastive.api import (
  contrastive_pair as contrastive_pair,
)
