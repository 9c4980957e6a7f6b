"""PyTorch peers of the benchmarks: attention, blocks and whole towers.

Imported only with `--peer torch`. Each function returns a call for
`timing.alternate`, which does one unit of work and waits for it. GPUs use
bfloat16 autocast, `torch.compile`, scaled_dot_product_attention and fused
AdamW; CPUs use float32 and eager mode, which is faster there (`--compile`
overrides it). Towers are timm's, with random weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mico_jax import extras
from mico_jax.benchmarks.shapes import Shape

# Encoder of this package -> timm's model of the same sizes.
TOWERS = {
  "vit_b16": "vit_base_patch16_224",
  "vit_l14": "vit_large_patch14_clip_224",
  "vit_g14": "eva_giant_patch14_224",
}


def missing(*, towers: bool) -> str | None:
  """The reason why the peer cannot run here, or None."""
  try:
    import torch  # noqa: F401
  except ImportError:
    return f"PyTorch is not installed; {extras.install('torch')}"
  if towers:
    try:
      import timm  # noqa: F401
    except ImportError:
      return f"timm is not installed; {extras.install('parity')}"
  return None


def _device() -> Any:
  import torch

  return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads() -> None:
  """Sets the number of PyTorch's threads to the cores of this process."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))


def _wait(device: Any) -> None:
  import torch

  if device.type == "cuda":
    torch.cuda.synchronize()


def _autocast(device: Any) -> Any:
  import torch

  if device.type != "cuda":
    return contextlib.nullcontext()
  return torch.autocast("cuda", dtype=torch.bfloat16)


def attention(shape: Shape, *, backward: bool, dtype: str) -> Callable[[], Any]:
  """`scaled_dot_product_attention` on q, k, v [B, N, L, H].

  Args:
    shape: attention problem.
    backward: whether to include all gradients.
    dtype: "float32" or "bfloat16".
  """
  import torch

  device = _device()
  kind = getattr(torch, dtype)
  heads = shape.num_heads, shape.head_dim

  def random(length: int, seed: int) -> Any:
    values = np.random.default_rng(seed).normal(
      size=(shape.batch, length, *heads)
    )
    x = torch.from_numpy(values.astype(np.float32)).to(device, kind)
    return x.transpose(1, 2).requires_grad_(backward)

  q, k, v = (
    random(n, i)
    for i, n in enumerate((shape.num_queries, shape.num_keys, shape.num_keys))
  )
  gradient = torch.ones_like(q).contiguous()
  attend = torch.nn.functional.scaled_dot_product_attention
  return _waiting(lambda: attend(q, k, v), (q, k, v), gradient, backward)


def _waiting(
  forward: Callable[[], Any], inputs: Any, gradient: Any, backward: bool
) -> Callable[[], Any]:
  """A call of `forward`, with gradients of its inputs if `backward`."""
  import torch

  def call() -> Any:
    with contextlib.nullcontext() if backward else torch.no_grad():
      out = forward()
      if backward:
        out = torch.autograd.grad(out, inputs, gradient)
    _wait(gradient.device)
    return out

  return call


def block(shape: Shape, *, backward: bool, dtype: str) -> Callable[[], Any]:
  """Residual block: x + attention(x W) V on [B, L, D].

  Args:
    shape: of self-attention.
    backward: whether to include all gradients.
    dtype: "float32" or "bfloat16".
  """
  import torch

  device, kind = _device(), getattr(torch, dtype)
  width = shape.num_heads * shape.head_dim

  def random(*sizes: int) -> Any:
    x = torch.randn(*sizes, device=device, dtype=torch.float32) * width**-0.5
    return x.to(kind).requires_grad_(backward)

  x = random(shape.batch, shape.num_queries, width)
  w, out = random(width, 3 * width), random(width, width)
  gradient = torch.ones_like(x)
  heads = (shape.batch, shape.num_queries, 3, shape.num_heads, shape.head_dim)

  def forward() -> Any:
    q, k, v = (x @ w).reshape(heads).permute(2, 0, 3, 1, 4).unbind(0)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return x + y.transpose(1, 2).reshape(x.shape) @ out

  return _waiting(forward, (x, w, out), gradient, backward)


def tower(
  name: str, *, batch: int, train: bool, compiled: bool
) -> Callable[[], Any]:
  """Forward pass or training step of timm's encoder.

  Args:
    name: key of `TOWERS`.
    batch: images.
    train: whether to compute gradients and update by AdamW.
    compiled: whether to use `torch.compile`.

  Raises:
    ValueError: for a tower that timm does not have.
  """
  import timm
  import torch

  if name not in TOWERS:
    raise ValueError(f"timm peer of {name!r}; known: {', '.join(TOWERS)}.")
  device = _device()
  torch.manual_seed(0)
  model = timm.create_model(TOWERS[name], num_classes=0, global_pool="token")
  model = model.to(device).train(train)
  images = torch.randn(batch, 3, 224, 224, device=device)
  run = torch.compile(model) if compiled else model

  if not train:

    def forward() -> Any:
      with torch.no_grad(), _autocast(device):
        out = run(images)
      _wait(device)
      return out

    return forward

  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=1e-4,
    weight_decay=0.01,
    fused=True,
  )

  def step() -> Any:
    optimizer.zero_grad(set_to_none=True)
    with _autocast(device):
      loss = run(images).float().square().mean()
    loss.backward()
    optimizer.step()
    _wait(device)
    return loss

  return step


def contrastive(sides: Any, *, temperature: float) -> Callable[[], Any]:
  """Symmetric softmax loss with gradients on one device.

  Args:
    sides: unit rows [B, E] of both sides, as NumPy arrays.
    temperature: divides the products.
  """
  import torch

  device = _device()
  x, y = (torch.from_numpy(a).to(device).requires_grad_() for a in sides)
  label = torch.arange(len(x), device=device)
  loss = torch.nn.functional.cross_entropy

  def call() -> Any:
    scores = x @ y.T / temperature
    value = (loss(scores, label) + loss(scores.T, label)) / 2
    grads = torch.autograd.grad(value, (x, y))
    _wait(device)
    return grads

  return call
