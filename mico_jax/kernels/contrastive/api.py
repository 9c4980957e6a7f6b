"""The door of the contrastive loss: one signature, several backends.

Only the plain `xla` form exists so far; it holds one [B, B] matrix. A form
whose memory does not grow with the global batch is one more entry of the
table: it gets the same arguments and must pass the same tests.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from jaxtyping import Array, Bool, Float, UInt32

from mico_jax.kernels.contrastive import xla

BACKENDS: dict[str, Callable[..., tuple[Array, Array]]] = {"xla": xla.loss}


@functools.cache
def _log_choice(backend: str) -> None:
  logging.getLogger(__name__).info("contrastive loss: backend %s", backend)


def contrastive_loss(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  *,
  temperature: Float[Array, ""],
  label_smoothing: float = 0.0,
  fingerprint: UInt32[Array, "B 2"] | None = None,
  valid: Bool[Array, " B"] | None = None,
  detach_keys: bool = False,
  negatives: Float[Array, "B K E"] | None = None,
  negatives_valid: Bool[Array, "B K"] | None = None,
  backend: str = "auto",
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
  """Cross-entropy of each query against all keys of the global batch.

  Args:
    query: unit-norm embeddings; row i pairs with row i of `key`.
    key: unit-norm embeddings.
    temperature: divides the similarities; positive, learnable.
    label_smoothing: mass moved from the true pair to all keys, in [0, 1).
    fingerprint: keys whose pair has the fingerprint of row i share the target
      mass of query i equally; None: only key i is a target.
    valid: rows that take part; invalid keys are in no denominator and
      invalid queries get loss 0. None: all.
    detach_keys: no gradient into `key`, as the released code, which gathers
      the other side without gradient.
    negatives: further keys of query i alone, never a target; unit-norm.
    negatives_valid: which of them there are; None: all.
    backend: "auto" or a key of `BACKENDS`.

  Returns:
    (loss [B] in nats, whether the best key is a target [B]).

  Raises:
    ValueError: if the shapes differ or the backend is unknown.

  Source: CLIP, arXiv:2103.00020, figure 3; the released MiCo code smooths by
  0.1 and detaches the gathered side.
  """
  if query.shape != key.shape:
    raise ValueError(
      f"{query.shape=} and {key.shape=} differ; both sides of a contrastive "
      "pair need the same batch and embedding width."
    )
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must lie in [0, 1).")
  name = "xla" if backend == "auto" else backend
  if name not in BACKENDS:
    raise ValueError(
      f"unknown contrastive {backend=}; known: auto, {', '.join(BACKENDS)}."
    )
  _log_choice(name)
  return BACKENDS[name](
    query,
    key,
    temperature=temperature,
    label_smoothing=label_smoothing,
    fingerprint=fingerprint,
    valid=valid,
    detach_keys=detach_keys,
    negatives=negatives,
    negatives_valid=negatives_valid,
  )
