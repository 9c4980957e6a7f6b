"""Cross-entropy of token ids under vocabulary logits."""

from mico_jax.kernels.cross_entropy.api import BACKENDS as BACKENDS
from mico_jax.kernels.cross_entropy.api import IGNORE as IGNORE
from mico_jax.kernels.cross_entropy.api import TIED_BACKENDS as TIED_BACKENDS
from mico_jax.kernels.cross_entropy.api import (
  tied_cross_entropy as tied_cross_entropy,
)
from mico_jax.kernels.cross_entropy.api import (
  token_cross_entropy as token_cross_entropy,
)
