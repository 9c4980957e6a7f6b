"""Linear layers and the MLPs of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.layers.activations import gelu, quick_gelu
from mico_jax.layers.fusion import forward_barrier
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter

# 1 / sqrt(fan in): 0.027 at width 1408, so close to the 0.02 of ViT and BERT at
# their sizes, and still right for narrow towers, which 0.02 leaves untrained
# for many steps.
KERNEL_INIT = nn.initializers.lecun_normal()


class Dense(nn.Module):
  """Linear layer: float32 parameters, products in `dtype`.

  Attributes:
    features: output width.
    dtype: compute dtype.
    use_bias: whether a bias is added.
    names: logical axes of the kernel.
    bias_name: logical axis of the bias.
    kernel_init: initializer of the kernel.
  """

  features: int
  dtype: Any = jnp.float32
  use_bias: bool = True
  names: tuple[str, str] = (axes.EMBED, axes.UNSHARDED)
  bias_name: str = axes.NORM
  kernel_init: Callable[..., Any] = KERNEL_INIT

  @nn.compact
  def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Returns x @ kernel + bias in the compute dtype."""
    kernel = parameter(
      self,
      "kernel",
      self.kernel_init,
      (x.shape[-1], self.features),
      self.names,
      dtype=self.dtype,
    )
    y = jnp.matmul(x.astype(self.dtype), kernel)
    if self.use_bias:
      bias = parameter(
        self, "bias", nn.initializers.zeros, (self.features,), (self.bias_name,)
      )
      y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y


# Kind of MLP -> its activation; "swiglu" activates a gate beside the values.
MLPS: dict[str, Callable[[Array], Array]] = {
  "gelu": gelu,
  "gelu_tanh": jax.nn.gelu,
  "quick_gelu": quick_gelu,
  "swiglu": jax.nn.silu,
}


class Mlp(nn.Module):
  """Linear, activation, linear; or fc2(silu(gate(x)) * fc1(x)).

  Attributes:
    hidden_dim: width between the two layers.
    dtype: compute dtype.
    kind: key of `MLPS`; "gelu" is the exact one.
    norm_eps: of a LayerNorm before the last layer; None: no such norm.
    use_bias: whether the layers have biases.
  """

  hidden_dim: int
  dtype: Any = jnp.float32
  kind: str = "gelu"
  norm_eps: float | None = None
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Returns the transformed tokens."""
    width = x.shape[-1]

    def first(name: str) -> Float[Array, "*B F"]:
      return Dense(
        self.hidden_dim,
        self.dtype,
        use_bias=self.use_bias,
        names=(axes.EMBED, axes.MLP),
        bias_name=axes.MLP,
        name=name,
      )(x)

    if self.kind == "swiglu":
      y = MLPS[self.kind](first("gate")) * first("fc1")
    else:
      y = MLPS[self.kind](first("fc1"))
    y = forward_barrier(y)
    if self.norm_eps is not None:
      y = LayerNorm(self.norm_eps, name="norm")(y)
    return Dense(
      width,
      self.dtype,
      use_bias=self.use_bias,
      names=(axes.MLP, axes.EMBED),
      name="fc2",
    )(y)
