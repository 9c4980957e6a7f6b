"""UniRepLKNet's training form merged into the inference form, exactly.

The published files hold, per block with a large kernel: the kernel, parallel
dilated kernels, a BatchNorm after each, and one after their sum; then an MLP
whose last layer is followed by BatchNorm and a layer scale. With fixed
statistics all of this is linear, so it folds into one kernel and one bias per
convolution. Sums are taken in float64.

Source: arXiv:2311.15599, section 3.1 and appendix A (dilated branches).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mico_jax.config import VisionConfig

BATCH_NORM_EPS = 1e-5
# Smallest kernel of a block with branches, and the name of such a branch.
SMALLEST_LARGE = 7
_BRANCH = re.compile(r"dwconv\.dil_conv_k(\d+)_(\d+)\.weight$")
_COUNTER = re.compile(r"\.num_batches_tracked$")


class _Tensors:
  """Tensors that are removed as they are used, in float64."""

  def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
    self.left = {k: v for k, v in tensors.items() if not _COUNTER.search(k)}

  def take(self, name: str) -> np.ndarray:
    if name not in self.left:
      raise ValueError(
        f"no tensor {name}: not the training form of the UniRepLKNet that "
        "config.model.vision describes."
      )
    return np.asarray(self.left.pop(name), np.float64)

  def batch_norm(
    self, name: str
  ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Factor and offset of a BatchNorm with its running statistics."""
    scale, bias, mean, variance = (
      self.take(f"{name}.{part}")
      for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + BATCH_NORM_EPS)
    return factor, bias - mean * factor


def spread(
  kernel: Float[np.ndarray, "C 1 k k"], dilation: int, size: int
) -> Float[np.ndarray, "C 1 s s"]:
  """A dilated kernel as the dense kernel of size `size` that it equals.

  Source: arXiv:2311.15599, appendix A.

  Raises:
    ValueError: if the dilated kernel is larger than `size`.
  """
  reach = dilation * (kernel.shape[-1] - 1) + 1
  if reach > size:
    raise ValueError(
      f"a branch of size {kernel.shape[-1]} and dilation {dilation} reaches "
      f"{reach} places, more than the kernel's {size}."
    )
  out = np.zeros((*kernel.shape[:2], size, size))
  start = (size - reach) // 2
  places = slice(start, start + reach, dilation)
  out[:, :, places, places] = kernel
  return out


def _merge_block(
  tensors: _Tensors, block: str, size: int
) -> dict[str, np.ndarray]:
  large = size >= SMALLEST_LARGE
  conv = f"{block}dwconv.lk_origin" if large else f"{block}dwconv"
  kernel = tensors.take(f"{conv}.weight")
  bias = np.zeros(kernel.shape[0])
  if large:
    factor, bias = tensors.batch_norm(f"{block}dwconv.origin_bn")
    kernel = kernel * factor[:, None, None, None]
    names = [
      n for n in tensors.left if n.startswith(block) and _BRANCH.search(n)
    ]
    for name in names:
      match = _BRANCH.search(name)
      assert match  # by the filter above
      norm = f"{block}dwconv.dil_bn_k{match[1]}_{match[2]}"
      factor, offset = tensors.batch_norm(norm)
      branch = tensors.take(name) * factor[:, None, None, None]
      kernel = kernel + spread(branch, int(match[2]), kernel.shape[-1])
      bias = bias + offset
  factor, offset = tensors.batch_norm(f"{block}norm")
  out = {
    f"{conv}.weight": kernel * factor[:, None, None, None],
    f"{conv}.bias": bias * factor + offset,
  }
  # The response norm's bias passes through the last layer, then BatchNorm and
  # layer scale act on both.
  last = tensors.take(f"{block}pwconv2.0.weight")
  passed = last @ tensors.take(f"{block}act.1.beta").reshape(-1)
  factor, offset = tensors.batch_norm(f"{block}pwconv2.2")
  scale = np.ones_like(factor)
  if f"{block}gamma" in tensors.left:
    scale = tensors.take(f"{block}gamma")
  out[f"{block}pwconv2.0.weight"] = last * (factor * scale)[:, None]
  out[f"{block}pwconv2.0.bias"] = (passed * factor + offset) * scale
  return out


def merge(
  tensors: Mapping[str, np.ndarray], config: VisionConfig
) -> dict[str, np.ndarray]:
  """Tensors of the merged form from those of the training form.

  Args:
    tensors: by official name, BatchNorms and branches included.
    config: of the encoder.

  Returns:
    Tensors for `staged_vision.from_tensors`, layout "official".

  Raises:
    ValueError: naming a tensor that is missing or a branch that does not fit.
  """
  source = _Tensors(tensors)
  merged: dict[str, np.ndarray] = {}
  for s, (depth, sizes) in enumerate(
    zip(config.stage_depths, config.stage_kernels, strict=True)
  ):
    for j in range(depth):
      size = sizes[j % len(sizes)]
      merged |= _merge_block(source, f"stages.{s}.{j}.", size)
  merged = {k: v.astype(np.float32) for k, v in merged.items()}
  return {**source.left, **merged}
