"""Times of a whole vision tower on the local device.

`mico-jax bench step [--shapes vit_b16] [--peer torch]`: a forward pass, and a
training step (gradient of the mean square of the class token, AdamW), in turns
with timm's model of the same sizes in PyTorch. The tower and optimizer of this
package run in bfloat16 with float32 parameters on an accelerator, in float32 on
a CPU. The share is relative to the measured rate of a large matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mico_jax.benchmarks import model_flops, timing
from mico_jax.config import OptimizerConfig, VisionConfig
from mico_jax.models.presets import VISION
from mico_jax.models.vit import ViT
from mico_jax.train.optimizer import make_optimizer

# Name -> preset of the encoder.
TOWERS = {
  "vit_b16": "vit_b16",
  "vit_l14": "vit_l14",
  "vit_g14": "eva01_g14",
}
_BATCH = {"cpu": 8}  # default number of images; 64 on other platforms
PEERS = ("torch",)


def _images(config: VisionConfig, batch: int) -> jax.Array:
  shape = (batch, config.image_size, config.image_size, 3)
  return jax.random.normal(jax.random.key(1), shape, jnp.float32)


def _tower(config: VisionConfig, remat: str) -> ViT:
  # Unrolled layers are faster on a CPU, a loop compiles faster elsewhere.
  scan = jax.default_backend() != "cpu"
  dtype = jnp.dtype(timing.default_dtype())
  return ViT(config=config, dtype=dtype, remat=remat, scan=scan)


def _params(module: Any, config: VisionConfig) -> Any:
  init = jax.jit(lambda rng, x: nn.meta.unbox(module.init(rng, x)["params"]))
  return init(jax.random.key(0), _images(config, 1))


def forward(
  config: VisionConfig, *, batch: int, remat: str = "none"
) -> Callable[[], Any]:
  """A call that encodes images.

  Args:
    config: of the tower.
    batch: images.
    remat: policy of `mico_jax.layers.stack.REMAT`, without effect here.
  """
  module = _tower(config, remat)
  params, images = _params(module, config), _images(config, batch)
  run = jax.jit(lambda params, x: module.apply({"params": params}, x)[0][:, 0])
  return timing.waiting(run, params, images)


def train(
  config: VisionConfig, *, batch: int, remat: str = "none"
) -> Callable[[], Any]:
  """A call that does one training step and keeps the new state.

  Args:
    config: of the tower.
    batch: images.
    remat: policy of `mico_jax.layers.stack.REMAT`.
  """
  module = _tower(config, remat)
  params, images = _params(module, config), _images(config, batch)
  options = OptimizerConfig(clip_norm=0.0, schedule="constant", warmup=0)
  optimizer = make_optimizer(options, params, 1000)

  def loss(params: Any, x: jax.Array) -> jax.Array:
    out = module.apply({"params": params}, x)[0][:, 0]
    return jnp.mean(jnp.square(out.astype(jnp.float32)))

  @functools.partial(jax.jit, donate_argnums=(0,))
  def step(state: Any, x: jax.Array) -> Any:
    params, moments, count = state
    value, grads = jax.value_and_grad(loss)(params, x)
    params, moments = optimizer.update(grads, moments, params, step=count)
    return (params, moments, count + 1), value

  held = [(params, optimizer.init(params), jnp.zeros((), jnp.int32))]

  def call() -> Any:
    held[0], value = step(held[0], images)
    jax.block_until_ready(held[0])
    return value

  return call


def run(
  towers: Sequence[str],
  *,
  peers: Sequence[str] = (),
  batch: int = 0,
  turns: int = 7,
  remat: str = "none",
  compiled: bool = False,
) -> Iterator[dict[str, Any]]:
  """Measures each tower, forward and training step.

  Args:
    towers: names of `TOWERS`.
    peers: names of `PEERS`.
    batch: images; 0: 8 on a CPU, else 64.
    turns: see `timing.alternate`.
    remat: policy of `mico_jax.layers.stack.REMAT`.
    compiled: whether PyTorch uses `torch.compile`.

  Yields:
    One record per tower, implementation and direction.
  """
  batch = batch or _BATCH.get(jax.default_backend(), 64)
  limit = timing.ceiling(jnp.dtype(timing.default_dtype()))
  for name in towers:
    config = VISION[TOWERS[name]]
    for training in (False, True):
      build = train if training else forward
      calls = {"mico_jax": build(config, batch=batch, remat=remat)}
      if "torch" in peers:
        from mico_jax.benchmarks import torch_peers

        torch_peers.use_threads()
        calls["torch"] = torch_peers.tower(
          name, batch=batch, train=training, compiled=compiled
        )
      count = model_flops.train if training else model_flops.forward
      flops = batch * sum(count(config).values())
      for record in timing.records(
        timing.alternate(calls, turns=turns),
        first="mico_jax",
        flops=flops,
        limit=limit,
      ):
        seconds = 1e-3 * record["milliseconds"]
        yield {
          "shape": name,
          "pass": "train" if training else "forward",
          "images_per_second": round(batch / seconds, 2),
          **record,
        }
