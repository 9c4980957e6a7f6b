"""Linear probe: multinomial logistic regression on frozen features.

Features are standardised with the training set's statistics; the L2 penalty is
on the weights, not the bias; L-BFGS runs from zero, so the fit is a
deterministic function of its inputs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Probe:
  """A fitted linear classifier.

  Attributes:
    kernel: on standardised features.
    bias: of each class.
    mean: of the training features.
    scale: divides the centred features.
  """

  kernel: Float[np.ndarray, "D C"]
  bias: Float[np.ndarray, " C"]
  mean: Float[np.ndarray, " D"]
  scale: Float[np.ndarray, " D"]

  def logits(
    self, features: Float[np.ndarray, "N D"]
  ) -> Float[np.ndarray, "N C"]:
    """Scores of each class."""
    return (features - self.mean) / self.scale @ self.kernel + self.bias

  def predict(
    self, features: Float[np.ndarray, "N D"]
  ) -> Int[np.ndarray, " N"]:
    """The best class of each row."""
    return self.logits(features).argmax(axis=1)


@functools.partial(jax.jit, static_argnums=(2, 4))
def _fit(
  features: Float[Array, "N D"],
  labels: Int[Array, " N"],
  num_classes: int,
  penalty: Float[Array, ""],
  steps: int,
) -> dict[str, Float[Array, "..."]]:
  """Kernel [D C] and bias [C] after L-BFGS from zero."""

  def loss(params: dict[str, Float[Array, "..."]]) -> Float[Array, ""]:
    logits = features @ params["kernel"] + params["bias"][None, :]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return nll.mean() + 0.5 * penalty * jnp.sum(jnp.square(params["kernel"]))

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry, _):
    params, state = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = solver.update(
      grad, state, params, value=value, grad=grad, value_fn=loss
    )
    return (optax.apply_updates(params, updates), state), None

  params = {
    "kernel": jnp.zeros((features.shape[1], num_classes), features.dtype),
    "bias": jnp.zeros((num_classes,), features.dtype),
  }
  with jax.numpy_dtype_promotion("standard"):  # optax mixes weak types
    (params, _), _ = jax.lax.scan(
      step, (params, solver.init(params)), length=steps
    )
  return params


def fit_probe(
  features: Float[np.ndarray, "N D"],
  labels: Int[np.ndarray, " N"],
  num_classes: int,
  *,
  penalty: float = 1e-3,
  steps: int = 100,
) -> Probe:
  """Fits a linear classifier on frozen features.

  Args:
    features: one row per example.
    labels: class of each, in [0, num_classes).
    num_classes: number of classes.
    penalty: L2 factor on the weights, per example.
    steps: of L-BFGS.

  Raises:
    ValueError: for no examples or labels out of range.
  """
  if not len(features) or len(features) != len(labels):
    raise ValueError(
      f"{len(features)} features and {len(labels)} labels; expected the same "
      "number, one or more."
    )
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f"labels from {labels.min()} to {labels.max()} do not fit {num_classes=}."
    )
  mean = features.mean(axis=0)
  scale = np.maximum(features.std(axis=0), 1e-6)
  params = _fit(
    jnp.asarray((features - mean) / scale, jnp.float32),
    jnp.asarray(labels, jnp.int32),
    num_classes,
    jnp.asarray(penalty, jnp.float32),
    steps,
  )
  return Probe(
    kernel=np.asarray(params["kernel"]),
    bias=np.asarray(params["bias"]),
    mean=mean,
    scale=scale,
  )
