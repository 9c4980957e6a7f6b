"""MiCo in PyTorch: one encoder for all modalities, a text tower, contexts.

This file is the whole model. It needs PyTorch, safetensors and the other files
of its folder: weights, config.json, preprocessing.json, tokenizer/,
mico_inputs/ (decoders of raw inputs, equal to those of the checkpoint's own
code: NumPy, Pillow; PyAV and soundfile for files of sound and video) and
embeddings/, if a modality has a custom embedding.

    from modeling_mico import MiCo

    model = MiCo.from_folder(".")                   # .to("cuda") works
    z = model.embed(image=["a.jpg"], text=["a dog"])  # {modality: [N, E]}
    c = model.zero_shot(["a.jpg"], ["cat", "dog"], "a photo of a {}")  # [N, C]
    p = model.match(text=["a dog barks"], audio=[(waveform, 44100)])
    s = model.caption(image=[frames], num_beams=3)
    f = torch.jit.trace(model.tower("image"), prepared)  # or torch.export, ONNX
    model.train()                                   # now embed has gradients

Raw inputs are paths, bytes, arrays or tensors; a single one counts as a list of
one. Images and normals may be Pillow images or uint8 [Y, X, 3] or [T, Y, X, 3],
images also float in 0..1 and [3, Y, X], normals also float unit vectors; sound
is [N], [N, C] or [C, N] in units of full scale at the configured rate, or
(samples, rate); depth is float [Y, X] or [T, Y, X] in the unit of
preprocessing.json, and depth files have a unit in their name: "mm:d.png",
"m:d.npy" or "relative:d.png". For another unit of an array use
mico_inputs.items.Item(array, "millimetre"). An input that cannot be read, or
has no finite output, raises a ValueError that names it.

Letters: t text, s subtitle, v video, i image, a audio, d depth, n normal; a
group such as "va" is a context of several. In shapes, B is the batch, T frames,
L tokens, S context tokens, N heads, H head width, D the encoder's width, W the
text width, E the joint space, V the vocabulary.

No dropout is applied. Method: arXiv:2406.09412.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FORMAT = "mico_jax torch 1"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
INPUTS = "mico_inputs"
EMBEDDINGS = "embeddings"


# --------------------------------------------------------------------- layers
def attend(
  q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, masked_rows: str
) -> Tensor:
  """Softmax attention; q [B, L, N, H], k and v [B, S, N, H].

  `mask` is true at visible keys. A query without visible keys gives 0
  (masked_rows "zero"), or attends with -10000 added to masked scores, as in the
  official MiCo code ("released").
  """
  q, k, v = (x.transpose(1, 2) for x in (q, k, v))
  if mask is None:
    out = functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)
  scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
  if masked_rows == "released":
    weights = torch.softmax(scores + (~mask) * -10000.0, -1)
  else:
    low = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~mask, low), -1)
    weights = weights.masked_fill(~mask, 0.0)
  return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


class PackedProjection(nn.Module):
  """One weight for several groups of heads, such as queries, keys, values."""

  def __init__(self, width: int, num: int, num_heads: int, bias: str = "all"):
    """`bias` is "all", "qv" (none on the keys) or "none"."""
    super().__init__()
    self.num, self.num_heads = num, num_heads
    self.weight = nn.Parameter(torch.zeros(num * width, width))
    if bias == "qv":
      self.q_bias = nn.Parameter(torch.zeros(width))
      self.v_bias = nn.Parameter(torch.zeros(width))
    elif bias == "all":
      self.bias = nn.Parameter(torch.zeros(num * width))
    self.kind = bias

  def forward(self, x: Tensor) -> tuple[Tensor, ...]:
    """Returns `num` tensors [B, L, N, H]."""
    if self.kind == "qv":
      zeros = torch.zeros_like(self.q_bias)
      bias = torch.cat([self.q_bias, zeros, self.v_bias])
    else:
      bias = self.bias if self.kind == "all" else None
    y = functional.linear(x, self.weight, bias)
    parts = y.chunk(self.num, -1)
    return tuple(p.unflatten(-1, (self.num_heads, -1)) for p in parts)


class SelfAttention(nn.Module):
  """Multi-head self-attention, with a LayerNorm before `proj` if asked for."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    bias: str = "all",
    norm_eps: float | None = None,
  ):
    super().__init__()
    self.qkv = PackedProjection(width, 3, num_heads, bias)
    if norm_eps is not None:
      self.norm = nn.LayerNorm(width, norm_eps)
    self.inner = norm_eps is not None
    self.proj = nn.Linear(width, width)

  def forward(
    self,
    x: Tensor,
    mask: Tensor | None = None,
    masked_rows: str = "zero",
    rotary: tuple[Tensor, Tensor] | None = None,
  ) -> Tensor:
    """Attends among the tokens x [B, L, D]."""
    q, k, v = self.qkv(x)
    if rotary is not None:
      q, k = rotate(q, *rotary), rotate(k, *rotary)
    x = attend(q, k, v, mask, masked_rows)
    return self.proj(self.norm(x) if self.inner else x)


def repeat_heads(kv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
  """Keys and values [B, S, 2 M, H] repeated to the heads of the queries."""
  times = 2 * num_heads // kv.shape[2]
  return tuple(x.repeat_interleave(times, 2) for x in kv.chunk(2, 2))


class CrossAttention(nn.Module):
  """Attention from text tokens to a context."""

  def __init__(
    self, width: int, num_heads: int, kv_heads: int = 0, bias: bool = True
  ):
    """`kv_heads`: heads of keys and values; 0: as many as of queries."""
    super().__init__()
    self.num_heads, self.kv_heads = num_heads, kv_heads or num_heads
    kv = 2 * self.kv_heads * (width // num_heads)
    self.kv = nn.Linear(width, kv, bias)
    self.query = nn.Linear(width, width, bias)
    self.proj = nn.Linear(width, width, bias)

  def forward(
    self, x: Tensor, context: Context, masked_rows: str = "zero"
  ) -> Tensor:
    """Attends from x [B, L, W] to the context of each row."""
    q = self.query(x).unflatten(-1, (self.num_heads, -1))
    kv = self.kv(context.values).unflatten(-1, (2 * self.kv_heads, -1))
    k, v = repeat_heads(kv, self.num_heads)
    mask = None if context.mask is None else context.mask[:, None, None]
    return self.proj(attend(q, k, v, mask, masked_rows))


ACTIVATIONS = {
  "gelu": functional.gelu,
  "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
  "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
  "swiglu": functional.silu,
}


class Mlp(nn.Module):
  """Linear, activation, linear; or fc2(silu(gate(x)) * fc1(x))."""

  def __init__(
    self,
    width: int,
    hidden: int,
    kind: str = "gelu",
    norm_eps: float | None = None,
    bias: bool = True,
  ):
    super().__init__()
    self.kind, self.inner = kind, norm_eps is not None
    if kind == "swiglu":
      self.gate = nn.Linear(width, hidden, bias)
    self.fc1 = nn.Linear(width, hidden, bias)
    if norm_eps is not None:
      self.norm = nn.LayerNorm(hidden, norm_eps)
    self.fc2 = nn.Linear(hidden, width, bias)

  def forward(self, x: Tensor) -> Tensor:
    """Transforms the last axis."""
    activation = ACTIVATIONS[self.kind]
    if self.kind == "swiglu":
      y = activation(self.gate(x)) * self.fc1(x)
    else:
      y = activation(self.fc1(x))
    return self.fc2(self.norm(y) if self.inner else y)


# ------------------------------------------------------------ vision encoders
def rotary_tables(
  grid: int, head_dim: int, base_grid: int
) -> tuple[Tensor, Tensor]:
  """Cosine and sine [1 + L, 1, H] for the class token and every patch.

  Half of a head is rotated by the row of a patch, half by its column.
  """
  half = head_dim // 2
  power = torch.arange(0, half, 2, dtype=torch.float32) / half
  position = torch.arange(grid, dtype=torch.float32) / grid * base_grid
  angle = position[:, None] * (1.0 / 10000.0**power)
  angle = angle.repeat_interleave(2, -1)
  rows = angle[:, None].expand(grid, grid, half)
  columns = angle[None].expand(grid, grid, half)
  angles = torch.cat([rows, columns], -1).reshape(-1, 1, head_dim).double()
  angles = torch.cat([torch.zeros(1, 1, head_dim), angles])
  return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Rotates neighbouring pairs (x0, x1) of each head; x [B, L, N, H]."""
  pairs = x.unflatten(-1, (-1, 2))
  turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
  return (x * cos + turned * sin).to(x.dtype)


class ViTBlock(nn.Module):
  """Attention and MLP, each with its LayerNorm."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width, eps = config["width"], config["norm_eps"]
    inner = eps if config["sub_norm"] else None
    self.post = config["norm"] == "post"
    self.norm1 = nn.LayerNorm(width, eps)
    self.attn = SelfAttention(
      width, config["num_heads"], config["qkv_bias"], inner
    )
    self.norm2 = nn.LayerNorm(width, eps)
    self.mlp = Mlp(width, config["mlp_dim"], config["mlp"], inner)
    self.scaled = bool(config["layer_scale"])
    if self.scaled:
      self.scale1 = nn.Parameter(torch.zeros(width))
      self.scale2 = nn.Parameter(torch.zeros(width))

  def forward(
    self,
    x: Tensor,
    rotary: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
  ) -> Tensor:
    """Returns the tokens after this block."""
    if self.post:
      y = self.norm1(self.attn(x, mask, rotary=rotary))
    else:
      y = self.attn(self.norm1(x), mask, rotary=rotary)
    x = x + (y * self.scale1 if self.scaled else y)
    y = self.norm2(self.mlp(x)) if self.post else self.mlp(self.norm2(x))
    return x + (y * self.scale2 if self.scaled else y)


class PatchEmbed(nn.Module):
  """Linear embedding of non-overlapping patches (row, column, channel)."""

  def __init__(self, width: int, patch_size: int, bias: bool = True):
    super().__init__()
    self.patch_size = patch_size
    self.proj = nn.Linear(patch_size**2 * 3, width, bias)

  def forward(self, pixels: Tensor) -> Tensor:
    """Embeds frames [B, Y, X, 3] as [B, L, D]."""
    p = self.patch_size
    batch, rows, columns, _ = pixels.shape
    x = pixels.reshape(batch, rows // p, p, columns // p, p, 3)
    return self.proj(x.transpose(2, 3).reshape(batch, -1, p * p * 3))


class AttentionPool(nn.Module):
  """Attention of one learned query over tokens, then a residual MLP."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width, self.heads = config["width"], config["num_heads"]
    self.probe = nn.Parameter(torch.zeros(width))
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    self.norm = nn.LayerNorm(width, config["norm_eps"])
    self.mlp = Mlp(width, config["mlp_dim"], config["mlp"])

  def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns one token [B, 1, D] of tokens [B, L, D], of `mask` [B, L]."""
    rows = torch.cat([self.probe.expand(x.shape[0], 1, -1), x], 1)
    packed = self.qkv(rows).unflatten(-1, (3, self.heads, -1))
    query, keys, values = packed[:, :1, 0], packed[:, 1:, 1], packed[:, 1:, 2]
    mask = None if mask is None else mask[:, None, None]
    y = self.proj(attend(query, keys, values, mask, "zero"))
    return y + self.mlp(self.norm(y))


class ViT(nn.Module):
  """Vision transformer over frames."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    self.config = config
    width, eps = config["width"], config["norm_eps"]
    self.grid = config["image_size"] // config["patch_size"]
    self.single = int(config.get("pooling", "class") == "class")
    self.hidden = config.get("registers", 0)
    if self.single:
      self.cls_token = nn.Parameter(torch.zeros(width))
    else:
      self.pool = AttentionPool(config)
    if self.hidden:
      self.registers = nn.Parameter(torch.zeros(self.hidden, width))
    rows = self.single + self.grid**2
    self.pos_embed = nn.Parameter(torch.zeros(rows, width))
    self.patch_embed = PatchEmbed(
      width, config["patch_size"], config["patch_bias"]
    )
    if config["pre_norm"]:
      self.pre_norm = nn.LayerNorm(width, eps)
    self.blocks = nn.ModuleList(
      ViTBlock(config) for _ in range(config["depth"])
    )
    self.norm = nn.LayerNorm(width, eps)
    if config["clip_embed_dim"]:  # stored, not used
      dim, bias = config["clip_embed_dim"], config["clip_embed_bias"]
      self.clip_head = nn.Linear(width, dim, bias)
      self.logit_scale = nn.Parameter(torch.zeros(()))

  def forward(
    self,
    pixels: Tensor | None = None,
    *,
    tokens: Tensor | None = None,
    mask: Tensor | None = None,
  ) -> Tensor:
    """Encodes frames [B, Y, X, 3], or tokens with positions of their own.

    `mask` [B, L] is true at tokens that may be attended to. Returns tokens
    [B, L, D] after the final norm, that of the frame first.
    """
    config, rotary = self.config, None
    if tokens is None:
      tokens = self.patch_embed(pixels) + self.pos_embed[self.single :]
      if config["rope_grid"]:
        head_dim = config["width"] // config["num_heads"]
        tables = rotary_tables(self.grid, head_dim, config["rope_grid"])
        rotary = tuple(x.to(tokens.device) for x in tables)
    batch, x = tokens.shape[0], tokens
    if self.hidden:
      x = torch.cat([self.registers.expand(batch, -1, -1), x], 1)
    if self.single:
      first = (self.cls_token + self.pos_embed[0]).expand(batch, 1, -1)
      x = torch.cat([first, x], 1)
    seen = None
    if mask is not None:
      added = x.shape[1] - tokens.shape[1]
      seen = functional.pad(mask, (added, 0), value=True)[:, None, None]
    if config["pre_norm"]:
      x = self.pre_norm(x)
    for block in self.blocks:
      x = block(x, rotary, seen)
    x = self.norm(x)
    if not self.single:
      return torch.cat([self.pool(x, mask), x], 1)
    if self.hidden:
      return torch.cat([x[:, :1], x[:, 1 + self.hidden :]], 1)
    return x


class Conv(nn.Conv2d):
  """Convolution of feature maps [B, Y, X, C], zeros around."""

  def __init__(
    self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
  ):
    super().__init__(
      inputs, outputs, size, stride, padding=size // 2, groups=groups
    )

  def forward(self, input: Tensor) -> Tensor:
    """Returns [B, Y / stride, X / stride, D]."""
    return super().forward(input.movedim(-1, 1)).movedim(1, -1)


class ResponseNorm(nn.Module):
  """Scales each channel by its size relative to the mean of all channels."""

  def __init__(self, width: int, bias: bool = True):
    super().__init__()
    self.weight = nn.Parameter(torch.zeros(width))
    self.register_parameter(
      "bias", nn.Parameter(torch.zeros(width)) if bias else None
    )

  def forward(self, x: Tensor) -> Tensor:
    """Returns features [B, Y, X, C] of the same size."""
    norm = x.square().sum((1, 2), keepdim=True).sqrt()
    y = x * (1 + self.weight * norm / (norm.mean(-1, keepdim=True) + 1e-6))
    return y if self.bias is None else y + self.bias


class PatchStem(nn.Module):
  """Patches and a LayerNorm: pixels to the first stage's feature map."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width = config["stage_widths"][0]
    self.side = config["image_size"] // config["patch_size"]
    self.patch_embed = PatchEmbed(width, config["patch_size"])
    self.norm = nn.LayerNorm(width, config["norm_eps"])

  def forward(self, pixels: Tensor) -> Tensor:
    """Returns [B, Y, X, D]."""
    x = self.norm(self.patch_embed(pixels))
    return x.unflatten(1, (self.side, self.side))


class WindowAttention(nn.Module):
  """Self-attention within windows, with relative positions."""

  def __init__(self, width: int, num_heads: int, window: int):
    super().__init__()
    self.window = window
    rows = (2 * window - 1) ** 2
    self.position_bias = nn.Parameter(torch.zeros(rows, num_heads))
    self.qkv = PackedProjection(width, 3, num_heads)
    self.proj = nn.Linear(width, width)

  def bias(self) -> Tensor:
    """Relative positions [N, L, L] of the tokens of a window."""
    w = self.window
    at = torch.stack(
      torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")
    ).flatten(1)
    offset = at[:, :, None] - at[:, None] + w - 1
    index = offset[0] * (2 * w - 1) + offset[1]
    return self.position_bias[index.to(self.position_bias.device)].movedim(
      -1, 0
    )

  def mask(self, side: int, shift: int) -> Tensor:
    """-100 [windows, L, L] between tokens that only the shift joins."""
    w = self.window
    at = torch.arange(side)
    piece = (at >= side - w).int() + (at >= side - shift).int()
    region = 3 * piece[:, None] + piece[None]
    count = side // w
    region = region.reshape(count, w, count, w).transpose(1, 2)
    region = region.reshape(count**2, w * w)
    return (region[:, :, None] != region[:, None]) * -100.0

  def forward(self, x: Tensor, shifted: bool) -> Tensor:
    """Attends within windows of x [B, Y, X, D], shifted by half or not."""
    batch, side, _, width = x.shape
    w, count = self.window, side // self.window
    shift = w // 2 if shifted and count > 1 else 0
    x = x.roll((-shift, -shift), (1, 2))
    x = x.reshape(batch, count, w, count, w, width).transpose(2, 3)
    q, k, v = self.qkv(x.reshape(-1, w * w, width))
    scores = torch.einsum("blnh,bsnh->bnls", q, k) * q.shape[-1] ** -0.5
    scores = scores + self.bias()
    if shift:
      mask = self.mask(side, shift).to(x.device, scores.dtype)
      scores = scores.unflatten(0, (batch, -1)) + mask[:, None]
      scores = scores.flatten(0, 1)
    y = torch.einsum("bnls,bsnh->blnh", scores.softmax(-1), v)
    y = self.proj(y.reshape(batch, count, count, w, w, width))
    y = y.transpose(2, 3).reshape(batch, side, side, width)
    return y.roll((shift, shift), (1, 2))


class SwinBlock(nn.Module):
  """Pre-norm window attention and MLP."""

  def __init__(self, config: Mapping[str, Any], stage: int, index: int):
    super().__init__()
    width, eps = config["stage_widths"][stage], config["norm_eps"]
    side = config["image_size"] // config["patch_size"] // 2**stage
    self.shifted = index % 2 == 1
    self.norm1 = nn.LayerNorm(width, eps)
    self.attn = WindowAttention(
      width, config["stage_heads"][stage], min(config["window_size"], side)
    )
    self.norm2 = nn.LayerNorm(width, eps)
    self.mlp = Mlp(width, config["mlp_dim"] // config["width"] * width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the features after this block."""
    x = x + self.attn(self.norm1(x), self.shifted)
    return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
  """2 x 2 places side by side (columns outermost), LayerNorm, linear."""

  def __init__(self, config: Mapping[str, Any], stage: int):
    super().__init__()
    before, width = config["stage_widths"][stage - 1 : stage + 1]
    self.norm = nn.LayerNorm(4 * before, config["norm_eps"])
    self.reduction = nn.Linear(4 * before, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    """Returns features of half the resolution."""
    batch, side, _, width = x.shape
    x = x.reshape(batch, side // 2, 2, side // 2, 2, width)
    return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class ConvNeXtBlock(nn.Module):
  """Depthwise convolution, LayerNorm, MLP with response norm."""

  def __init__(self, config: Mapping[str, Any], stage: int, index: int):
    super().__init__()
    del index
    width = config["stage_widths"][stage]
    hidden = config["mlp_dim"] // config["width"] * width
    self.conv = Conv(width, width, 7, groups=width)
    self.norm = nn.LayerNorm(width, config["norm_eps"])
    self.fc1 = nn.Linear(width, hidden)
    self.grn = ResponseNorm(hidden)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the features after this block."""
    y = functional.gelu(self.fc1(self.norm(self.conv(x))))
    return x + self.fc2(self.grn(y))


class ConvNeXtDownsample(nn.Module):
  """LayerNorm, then a linear layer on 2 x 2 places."""

  def __init__(self, config: Mapping[str, Any], stage: int):
    super().__init__()
    before, width = config["stage_widths"][stage - 1 : stage + 1]
    self.norm = nn.LayerNorm(before, config["norm_eps"])
    self.reduction = nn.Linear(4 * before, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns features of half the resolution."""
    batch, side, _, width = x.shape
    x = self.norm(x).reshape(batch, side // 2, 2, side // 2, 2, width)
    return self.reduction(x.transpose(2, 3).flatten(3))


class SqueezeExcite(nn.Module):
  """Gates the channels by a small MLP of their means."""

  def __init__(self, width: int):
    super().__init__()
    self.fc1 = nn.Linear(width, width // 4)
    self.fc2 = nn.Linear(width // 4, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns gated features."""
    gate = self.fc2(functional.relu(self.fc1(x.mean((1, 2)))))
    return x * torch.sigmoid(gate)[:, None, None]


class UniRepBlock(nn.Module):
  """Depthwise convolution, gate, MLP with response norm."""

  def __init__(self, width: int, hidden: int, kernel_size: int):
    super().__init__()
    self.conv = Conv(width, width, kernel_size, groups=width)
    self.gate = SqueezeExcite(width)
    self.fc1 = nn.Linear(width, hidden)
    self.grn = ResponseNorm(hidden, bias=False)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the features after this block."""
    y = functional.gelu(self.fc1(self.gate(self.conv(x))))
    return x + self.fc2(self.grn(y))


class UniRepCycle(nn.Module):
  """Blocks of the kernel sizes that a stage repeats: block0, block1, ..."""

  def __init__(self, config: Mapping[str, Any], stage: int, index: int):
    super().__init__()
    del index
    width = config["stage_widths"][stage]
    hidden = config["mlp_dim"] // config["width"] * width
    for i, size in enumerate(config["stage_kernels"][stage]):
      self.add_module(f"block{i}", UniRepBlock(width, hidden, size))

  def forward(self, x: Tensor) -> Tensor:
    """Returns the features after the last block."""
    for block in self.children():
      x = block(x)
    return x


class UniRepStem(nn.Module):
  """Two strided 3 x 3 convolutions with LayerNorms."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width, eps = config["stage_widths"][0], config["norm_eps"]
    self.conv1 = Conv(3, width // 2, 3, 2)
    self.norm1 = nn.LayerNorm(width // 2, eps)
    self.conv2 = Conv(width // 2, width, 3, 2)
    self.norm2 = nn.LayerNorm(width, eps)

  def forward(self, pixels: Tensor) -> Tensor:
    """Returns a quarter of the resolution."""
    x = functional.gelu(self.norm1(self.conv1(pixels)))
    return self.norm2(self.conv2(x))


class UniRepDownsample(nn.Module):
  """A strided 3 x 3 convolution and a LayerNorm."""

  def __init__(self, config: Mapping[str, Any], stage: int):
    super().__init__()
    before, width = config["stage_widths"][stage - 1 : stage + 1]
    self.conv = Conv(before, width, 3, 2)
    self.norm = nn.LayerNorm(width, config["norm_eps"])

  def forward(self, x: Tensor) -> Tensor:
    """Returns features of half the resolution."""
    return self.norm(self.conv(x))


# Family -> stem, downsampling between stages, block.
STAGED: dict[str, tuple[Any, Any, Any]] = {
  "swin": (PatchStem, PatchMerging, SwinBlock),
  "convnext": (PatchStem, ConvNeXtDownsample, ConvNeXtBlock),
  "unireplknet": (UniRepStem, UniRepDownsample, UniRepCycle),
}


class Stage(nn.Module):
  """Downsampling (not in the first stage) and blocks."""

  def __init__(self, config: Mapping[str, Any], stage: int):
    super().__init__()
    _, downsample, block = STAGED[config["encoder"]]
    self.first = stage == 0
    if not self.first:
      self.downsample = downsample(config, stage)
    kernels = config["stage_kernels"]
    period = len(kernels[stage]) if kernels else 1
    self.blocks = nn.ModuleList(
      block(config, stage, i)
      for i in range(config["stage_depths"][stage] // period)
    )

  def forward(self, x: Tensor) -> Tensor:
    """Returns the features of this stage."""
    x = x if self.first else self.downsample(x)
    for block in self.blocks:
      x = block(x)
    return x


class StagedEncoder(nn.Module):
  """Swin, ConvNeXt V2 and UniRepLKNet: feature maps that shrink by stages."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    self.stem = STAGED[config["encoder"]][0](config)
    self.num_stages = len(config["stage_depths"])
    for i in range(self.num_stages):
      self.add_module(f"stage{i}", Stage(config, i))
    self.norm = nn.LayerNorm(config["width"], config["norm_eps"])

  def forward(self, pixels: Tensor) -> Tensor:
    """Tokens [B, L, D] of frames [B, Y, X, 3], row by row; no class token."""
    x = self.stem(pixels)
    for i in range(self.num_stages):
      x = getattr(self, f"stage{i}")(x)
    return self.norm(x).flatten(1, 2)


ENCODERS = {"vit": ViT, **dict.fromkeys(STAGED, StagedEncoder)}


# ----------------------------------------------------------------- text tower
class Context:
  """Tokens for cross-attention: values [B, S, W], mask [B, S] or None."""

  def __init__(self, values: Tensor, mask: Tensor | None = None):
    self.values, self.mask = values, mask

  def repeat(self, times: int) -> Context:
    """Every row `times` in a row, for the beams of a decoder."""
    mask = self.mask
    return Context(
      self.values.repeat_interleave(times, 0),
      None if mask is None else mask.repeat_interleave(times, 0),
    )


class TextEmbed(nn.Module):
  """Word, position and type vectors, LayerNorm."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width = config["width"]
    self.words = nn.Parameter(torch.zeros(config["vocab_size"], width))
    self.positions = nn.Parameter(torch.zeros(config["max_positions"], width))
    self.types = nn.Parameter(torch.zeros(config["type_vocab_size"], width))
    self.norm = nn.LayerNorm(width, config["norm_eps"])

  def forward(
    self, ids: Tensor, positions: Tensor | None = None, extra: Any = 0.0
  ) -> Tensor:
    """Embeds ids [B, L]; `positions` replaces the tower's own table."""
    table = self.positions if positions is None else positions
    x = self.words[ids] + self.types[0] + table[: ids.shape[1]] + extra
    return self.norm(x)


class BertBlock(nn.Module):
  """Post-norm self-attention, cross-attention (with a context) and MLP."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width, heads = config["width"], config["num_heads"]
    self.attn = SelfAttention(width, heads)
    self.attn_norm = nn.LayerNorm(width, config["norm_eps"])
    self.cross_attn = CrossAttention(width, heads)
    self.cross_norm = nn.LayerNorm(width, config["norm_eps"])
    self.mlp = Mlp(width, config["mlp_dim"])
    self.mlp_norm = nn.LayerNorm(width, config["norm_eps"])

  def forward(
    self, x: Tensor, mask: Tensor, context: Context | None, masked_rows: str
  ) -> Tensor:
    """Returns the tokens after this block."""
    x = self.attn_norm(x + self.attn(x, mask, masked_rows))
    if context is not None:
      x = self.cross_norm(x + self.cross_attn(x, context, masked_rows))
    return self.mlp_norm(x + self.mlp(x))


class LMHead(nn.Module):
  """Transform and decoder tied to the word vectors."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    self.dense = nn.Linear(config["width"], config["width"])
    self.norm = nn.LayerNorm(config["width"], config["norm_eps"])
    self.bias = nn.Parameter(torch.zeros(config["vocab_size"]))

  def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
    """Logits over the vocabulary."""
    x = self.norm(functional.gelu(self.dense(hidden)))
    return functional.linear(x, words, self.bias)


class Bert(nn.Module):
  """BERT: bidirectional; predicts a token at an appended [MASK]."""

  reading, next_token = "bidirectional", False

  def __init__(self, config: Mapping[str, Any], masked_rows: str):
    super().__init__()
    self.masked_rows = masked_rows
    self.embed = TextEmbed(config)
    self.blocks = nn.ModuleList(
      BertBlock(config) for _ in range(config["depth"])
    )
    self.lm_head = LMHead(config)

  def forward(
    self,
    ids: Tensor,
    mask: Tensor,
    places: Tensor,
    context: Context | None = None,
    table: Tensor | None = None,
    extra: Any = 0.0,
  ) -> Tensor:
    """Hidden states [B, L, W].

    Args:
      ids: [B, L].
      mask: [B, 1, L or 1, L], true where visible.
      places: positions counted over visible tokens; not used by this tower.
      context: tokens for cross-attention.
      table: position table, instead of the tower's own.
      extra: added to the embedded tokens.
    """
    del places
    x = self.embed(ids, table, extra)
    for block in self.blocks:
      x = block(x, mask, context, self.masked_rows)
    return x

  def pool(self, hidden: Tensor, valid: Tensor) -> Tensor:
    """The state of the first token."""
    return hidden[:, 0]

  def logits(self, hidden: Tensor) -> Tensor:
    """Scores of every word."""
    return self.lm_head(hidden, self.embed.words)


class RMSNorm(nn.Module):
  """Divides by the root of the mean square, and scales."""

  def __init__(self, width: int, eps: float):
    super().__init__()
    self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

  def forward(self, x: Tensor) -> Tensor:
    """Normalises the last axis, in float32."""
    wide = x.float()
    square = wide.square().mean(-1, keepdim=True)
    y = wide * torch.rsqrt(square + self.eps) * self.weight.float()
    return y.to(x.dtype)


class GroupedAttention(nn.Module):
  """Self-attention with rotary positions and fewer heads of keys and values."""

  def __init__(self, width: int, num_heads: int, kv_heads: int):
    super().__init__()
    self.groups = [num_heads, 2 * kv_heads]
    heads = num_heads + 2 * kv_heads
    self.qkv = nn.Linear(width, heads * (width // num_heads), False)
    self.proj = nn.Linear(width, width, False)

  def forward(
    self,
    x: Tensor,
    mask: Tensor,
    masked_rows: str,
    rotary: tuple[Tensor, Tensor],
  ) -> Tensor:
    """Attends among the tokens x [B, L, W]."""
    heads = self.qkv(x).unflatten(-1, (sum(self.groups), -1))
    q, kv = heads.split(self.groups, 2)
    k, v = repeat_heads(kv, q.shape[2])
    q, k = rotate(q, *rotary), rotate(k, *rotary)
    return self.proj(attend(q, k, v, mask, masked_rows))


class CausalBlock(nn.Module):
  """Pre-norm self-attention, cross-attention (with a context) and MLP."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    width, heads, eps = (
      config[name] for name in ("width", "num_heads", "norm_eps")
    )
    few = config["kv_heads"] or heads
    self.attn_norm = RMSNorm(width, eps)
    self.attn = GroupedAttention(width, heads, few)
    self.cross_norm = RMSNorm(width, eps)
    self.cross_attn = CrossAttention(width, heads, few, bias=False)
    self.mlp_norm = RMSNorm(width, eps)
    self.mlp = Mlp(width, config["mlp_dim"], "swiglu", bias=False)

  def forward(
    self,
    x: Tensor,
    mask: Tensor,
    context: Context | None,
    masked_rows: str,
    rotary: tuple[Tensor, Tensor],
  ) -> Tensor:
    """Returns the tokens after this block."""
    x = x + self.attn(self.attn_norm(x), mask, masked_rows, rotary)
    if context is not None:
      x = x + self.cross_attn(self.cross_norm(x), context, masked_rows)
    return x + self.mlp(self.mlp_norm(x))


class Words(nn.Module):
  """The word vectors, shared with the decoder."""

  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    shape = (config["vocab_size"], config["width"])
    self.words = nn.Parameter(torch.zeros(shape))


class CausalLM(nn.Module):
  """A causal language model: predicts the next token."""

  reading, next_token = "causal", True

  def __init__(self, config: Mapping[str, Any], masked_rows: str):
    super().__init__()
    self.masked_rows = masked_rows
    self.head_dim = config["width"] // config["num_heads"]
    self.embed = Words(config)
    self.blocks = nn.ModuleList(
      CausalBlock(config) for _ in range(config["depth"])
    )
    self.norm = RMSNorm(config["width"], config["norm_eps"])

  def forward(
    self,
    ids: Tensor,
    mask: Tensor,
    places: Tensor,
    context: Context | None = None,
    table: Tensor | None = None,
    extra: Any = 0.0,
  ) -> Tensor:
    """Hidden states [B, L, W]; see `Bert`. Positions are `places` [B, L]."""
    power = torch.arange(0, self.head_dim, 2, device=ids.device) / self.head_dim
    angle = places[..., None].float() * (1.0 / 10000.0**power)
    angle = angle.repeat_interleave(2, -1)[:, :, None]
    rotary = angle.cos(), angle.sin()
    x = self.embed.words[ids] + extra
    for block in self.blocks:
      x = block(x, mask, context, self.masked_rows, rotary)
    return self.norm(x)

  def pool(self, hidden: Tensor, valid: Tensor) -> Tensor:
    """The state of the last valid token."""
    columns = torch.arange(valid.shape[1], device=valid.device)
    last = (valid * columns).amax(1)
    return hidden[torch.arange(len(hidden), device=valid.device), last]

  def logits(self, hidden: Tensor) -> Tensor:
    """Scores of every word."""
    return functional.linear(hidden, self.embed.words)


TEXT_ENCODERS = {"bert": Bert, "causal": CausalLM}


# ----------------------------------------------------------------------- MiCo
class Projection(nn.Module):
  """Linear and LayerNorm: encoder width to text width."""

  def __init__(self, inputs: int, outputs: int, eps: float):
    super().__init__()
    self.dense = nn.Linear(inputs, outputs)
    self.norm = nn.LayerNorm(outputs, eps)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the projected tokens."""
    return self.norm(self.dense(x))


class MatchingHead(nn.Module):
  """Linear, GELU, LayerNorm, Linear to (no match, match)."""

  def __init__(self, width: int, eps: float):
    super().__init__()
    self.dense1 = nn.Linear(width, width)
    self.norm = nn.LayerNorm(width, eps)
    self.dense2 = nn.Linear(width, 2)

  def forward(self, x: Tensor) -> Tensor:
    """Returns logits."""
    return self.dense2(self.norm(functional.gelu(self.dense1(x))))


def resize_frames(vectors: Tensor, frames: int) -> Tensor:
  """A table [T, W] for another number of frames, by nearest neighbour."""
  old = len(vectors)  # the index is computed in float32, as in the original
  scale = torch.tensor(float(old)) / torch.tensor(float(frames))
  index = torch.floor(torch.arange(frames, dtype=torch.float32) * scale)
  return vectors[index.long().clamp(max=old - 1).to(vectors.device)]


def masked_mean(x: Tensor, mask: Tensor | None, axis: int) -> Tensor:
  """Mean along an axis over the entries of `mask`; 0 where there are none."""
  if mask is None:
    return x.mean(axis)
  weight = mask[..., None].to(x.dtype)
  return (x * weight).sum(axis) / weight.sum(axis).clamp(min=1.0)


def custom_embedding(
  key: str, spec: Mapping[str, Any], width: int
) -> nn.Module:
  """The custom embedding of a modality.

  Args:
    key: of the modality; the class is in embeddings/<key>.py beside this file.
    spec: its entry "tokens" in config.json.
    width: of the tokens.
  """
  path = pathlib.Path(__file__).resolve().parent / EMBEDDINGS / f"{key}.py"
  name = f"{EMBEDDINGS}_{key}_{abs(hash(path))}"
  source = importlib.util.spec_from_file_location(name, path)
  if not path.is_file() or source is None or source.loader is None:
    raise ImportError(
      f"{path} is missing; copy the exported folder as a whole."
    )
  module = sys.modules[name] = importlib.util.module_from_spec(source)
  source.loader.exec_module(module)
  return getattr(module, spec["class"])(width, spec["frame"], **spec["options"])


def known(classes: Mapping[str, Any], name: str, what: str) -> Any:
  """The class of a name; raises a ValueError for one that is not here."""
  if name not in classes:
    raise ValueError(f"{what} {name!r} is not one of {', '.join(classes)}.")
  return classes[name]


def table(rows: int, width: int) -> nn.Parameter:
  """A learned table of vectors."""
  return nn.Parameter(torch.zeros(rows, width))


def _gradients_in_training(method: Any) -> Any:
  """Computes without gradients unless the model is in `.train()` mode."""

  @functools.wraps(method)
  def wrapped(self: MiCo, *args: Any, **kwargs: Any) -> Any:
    with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
      return method(self, *args, **kwargs)

  return wrapped


class MiCo(nn.Module):
  """The model; build it with `MiCo.from_folder`.

  The upper half takes raw inputs (`embed`, `match`, `caption`), the lower half
  tensors: `encode`, `pool`, `features`, `context`, `encode_text`,
  `generate`.
  """

  # Optional tables of the paper.
  context_pos: nn.Parameter
  sample_embed: nn.Parameter
  joined_pos: nn.Parameter

  def __init__(
    self,
    config: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    tokenizer: Any = None,
  ):
    """Builds the modules.

    Args:
      config: content of config.json.
      preprocessing: content of preprocessing.json.
      tokenizer: of the folder, for raw inputs.
    """
    super().__init__()
    self.config, self.options = config, config["model"]
    self.modalities = config["modalities"]
    self.by_letter = {m["letter"]: k for k, m in self.modalities.items()}
    self.reader, self.tokenizer = Reader(preprocessing), tokenizer
    options, width = self.options, config["encoder_width"]
    vision, text = options["vision"], options["text"]
    wide, eps = text["width"], text["norm_eps"]
    self.vision = known(ENCODERS, vision["encoder"], "encoder")(vision)
    tower = known(TEXT_ENCODERS, text["encoder"], "text encoder")
    self.text = tower(text, options["masked_rows"])
    self._add_context_tables(wide, eps)
    self.contrastive_head = nn.ModuleDict(
      {
        head: nn.Linear(inputs, options["embed_dim"], len(head) > 1)
        for head, inputs in config["heads"].items()
      }
    )
    self.matching_head = MatchingHead(wide, eps)
    self.temperature = nn.Parameter(torch.tensor(options["temperature_init"]))
    if options.get("temperature") == "head":  # logarithms of factors on it
      self.temperature_log = nn.ParameterDict(
        {
          f"{head}_temperature": torch.zeros(())
          for head in config["heads"]
          if head != "t"
        }
      )
    self.embedding = nn.ModuleDict(
      {
        key: custom_embedding(key, m["tokens"], width)
        for key, m in self.modalities.items()
        if "tokens" in m
      }
    )
    for name, field in (
      ("context_pos", "context_positions"),
      ("sample_embed", "sample_embeddings"),
      ("joined_pos", "joined_positions"),
    ):
      if options[field]:
        self.register_parameter(name, table(options[field], wide))

  def _add_context_tables(self, wide: int, eps: float) -> None:
    """Builds the projection and the learned vectors of each context type."""
    contexts = self.config["contexts"]  # name -> length of its frame table
    width = self.config["encoder_width"]
    words = {  # context types that the text tower encodes
      m["context"] for m in self.modalities.values() if m["kind"] != "knowledge"
    }
    self.project = nn.ModuleDict(
      {
        name: Projection(wide if name in words else width, wide, eps)
        for name in contexts
      }
    )
    self.type_embed = nn.ParameterDict(
      {name: torch.zeros(wide) for name in contexts}
    )
    self.frame_embed = nn.ParameterDict(
      {name: torch.zeros(n, wide) for name, n in contexts.items() if n}
    )
    self.frame_gain = nn.ParameterDict(
      {
        name: torch.zeros(contexts[name], width)
        for name in self.config["weighted"]
      }
    )
    self.frame_change = nn.ModuleDict(
      {
        name: AttentionPool(self.options["vision"])
        for name in self.options.get("frame_changes", ())
      }
    )

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path) -> MiCo:
    """Builds the model of an exported folder, in float32, on the CPU."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config.get("format") != FORMAT:
      raise ValueError(
        f"{folder}/config.json: format {config.get('format')!r}, expected "
        f"{FORMAT!r}."
      )
    with torch.device("meta"):  # allocates nothing
      model = cls(
        config,
        json.loads((folder / "preprocessing.json").read_text()),
        read_tokenizer(folder / "tokenizer", config["tokenizer"]),
      )
    model.load_state_dict(read_weights(folder), assign=True)
    return model.eval()

  @property
  def device(self) -> torch.device:
    """The device of the parameters."""
    return self.temperature.device

  # ------------------------------------------------------------- raw inputs
  @_gradients_in_training
  def embed(
    self, *, groups: str | Sequence[str] = (), **inputs: Any
  ) -> dict[str, Tensor]:
    """Unit-norm embeddings [N, E] of each modality, or of joint groups.

    Args:
      groups: joint heads such as "va"; empty: each modality alone.
      **inputs: lists by modality; those of a group are aligned.

    Raises:
      ValueError: for a modality, head or input that cannot be used.
    """
    rows = self.lists(inputs)
    embeddings = {}
    if not groups:
      for key, values in rows.items():
        letter = self.modalities[key]["letter"]
        embeddings[key] = self._embedded({key: values}, letter)
      return embeddings
    for group in [groups] if isinstance(groups, str) else groups:
      keys = dict.fromkeys(self._key_of(letter, rows) for letter in group)
      embeddings[group] = self._embedded(
        {key: rows[key] for key in keys}, group
      )
    return embeddings

  @_gradients_in_training
  def match(self, *, text: Any, **inputs: Any) -> Tensor:
    """Probability [N] in [0, 1] that text i matches the inputs i."""
    rows = self.lists({"text": text, **inputs})
    if not input_items().lengths_of(rows):
      return torch.zeros(0, device=self.device)
    context = self.context_of(inputs)
    ids = self.tokens("text", text)
    hidden = self.encode_text(ids, context=context)
    probability = self.matching_logits(hidden, ids).softmax(-1)[:, 1]
    return self._finite(probability, rows, "the matching probability")

  @_gradients_in_training
  def zero_shot(
    self,
    images: Any = None,
    classes: Sequence[str] = (),
    templates: str | Sequence[str] = "{}",
    **inputs: Any,
  ) -> Tensor:
    """Probabilities [N, C] of classes, from the similarity to their prompts.

    A class is the mean of its prompts' embeddings, made unit-norm.

    Args:
      images: pictures; None: other modalities, such as `audio=[...]`.
      classes: their names, one per column.
      templates: prompts with "{}" where the name goes.
      **inputs: aligned lists; several modalities use their joint head.
    """
    inputs = inputs if images is None else {"image": images, **inputs}
    if isinstance(classes, str) or not classes:
      raise ValueError(
        "classes must be a list of names, such as ['cat', 'dog']."
      )
    templates = [templates] if isinstance(templates, str) else list(templates)
    if wrong := [t for t in templates if "{}" not in t]:
      raise ValueError(f"{wrong[0]!r} has no {{}} where the class name goes.")
    prompts = [t.replace("{}", c) for c in classes for t in templates]
    texts = self.embed(text=prompts)["text"]
    texts = texts.unflatten(0, (len(classes), len(templates))).mean(1)
    letters = self._letters_of(self.lists(inputs))
    joint = {"groups": letters} if len(inputs) > 1 else {}
    (rows,) = self.embed(**joint, **inputs).values()
    similarity = rows @ functional.normalize(texts, dim=-1).T
    return (similarity / self.divisor((letters,))).softmax(-1)

  def divisor(self, contexts: Sequence[str] = ()) -> Tensor:
    """The temperature by which similarities are divided.

    Args:
      contexts: that are compared; of a model with a factor for each head, the
        geometric mean of theirs counts.
    """
    value = self.temperature
    if hasattr(self, "temperature_log") and contexts:
      names = [f"{self._head_of(c)}_temperature" for c in contexts]
      logs = torch.stack([self.temperature_log[name] for name in names])
      value = value * logs.mean().exp()
    return value.clamp(min=self.options.get("temperature_min") or 0.0)

  @torch.no_grad()
  def caption(
    self,
    *,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    **inputs: Any,
  ) -> list[str]:
    """A caption of each row of the inputs.

    Options that are None default to "generation" of config.json.

    Args:
      max_new_tokens: largest number of tokens of a caption.
      num_beams: 1 is greedy.
      length_penalty: exponent of the length in the score of a beam.
      top_p: in (0, 1]: draws each token from the most probable ones whose
        probabilities sum to this (nucleus sampling, one beam); 0: draws none.
      temperature: by which logits are divided before a token is drawn.
      seed: of what is drawn, by PyTorch: mico_jax draws others.
      **inputs: aligned lists.
    """
    rows = self.lists(inputs)
    search = input_items().search_options(
      self.config["generation"],
      max_new_tokens=max_new_tokens,
      num_beams=num_beams,
      length_penalty=length_penalty,
      top_p=top_p,
      temperature=temperature,
      seed=seed,
    )
    if not input_items().lengths_of(rows):
      return []
    room = self.options["text"]["max_positions"] - 1
    sequences, scores = self.generate(
      self.context_of(inputs),
      max_new_tokens=min(search.max_new_tokens, room),
      num_beams=search.num_beams,
      length_penalty=search.length_penalty,
      top_p=search.top_p,
      temperature=search.temperature,
      seed=search.seed,
    )
    self._finite(scores[:, 0], rows, "the caption's score")
    return [self.tokenizer.decode(row[0].tolist()) for row in sequences]

  def tower(self, key: str) -> Tower:
    """A module from prepared inputs of one modality to embeddings.

    It supports torch.export (with a dynamic batch), torch.jit.trace and
    torch.onnx.export for any batch size; `pixels` and `tokens` prepare inputs.
    """
    self.lists({key: []})
    return Tower(self, key)

  def lists(self, inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Raw inputs as lists.

    Raises:
      ValueError: if there are none, or of a modality the model does not take.
    """
    if not inputs:
      raise ValueError("no inputs given, e.g. image=['photo.jpg'].")
    for key in inputs:
      if key not in self.modalities:
        raise ValueError(
          f"this model takes no {key!r}; it takes {', '.join(self.modalities)}."
        )
    return self.reader.lists(inputs)

  def context_of(self, inputs: Mapping[str, Any]) -> Context:
    """The context of raw inputs, in the order of training."""
    rows = self.lists(inputs)
    input_items().lengths_of(rows)
    letters = self._letters_of(rows)
    tokens, _, masks = self.read(rows)
    return self.context(letters, tokens, masks)

  def _letters_of(self, rows: Mapping[str, Any]) -> str:
    """Letters of a context of the modalities, in the order of training."""
    wanted = {self.modalities[key]["letter"] for key in rows}
    if "t" in wanted:
      raise ValueError("text=[...] cannot be its own context.")
    for group in self.config["groups"]:
      if set(group) == wanted:
        return group
    order = "".join(m["letter"] for m in self.modalities.values())
    return "".join(sorted(wanted, key=order.index))

  def _key_of(self, letter: str, inputs: Mapping[str, Any]) -> str:
    """The input for a letter; an image may serve as a video."""
    key = self.by_letter.get(letter, letter)
    others = (k for k, m in self.modalities.items() if m["plays"] == letter)
    for other in (key, *others):
      if other in inputs:
        return other
    raise ValueError(
      f"letter {letter!r} needs {key}=[...]; given: {', '.join(inputs)}."
    )

  def _embedded(
    self, rows: Mapping[str, Sequence[Any]], letters: str
  ) -> Tensor:
    """Embeddings [N, E] of aligned rows."""
    if not input_items().lengths_of(rows):
      return torch.zeros(0, self.options["embed_dim"], device=self.device)
    _, pooled, _ = self.read(rows)
    embedding = self.features(letters, pooled)
    return self._finite(embedding, rows, "the embedding")

  def _finite(
    self, values: Tensor, rows: Mapping[str, Sequence[Any]], what: str
  ) -> Tensor:
    """`values`, one per row; raises a ValueError unless all are finite."""
    numbers = values.detach().cpu().numpy()
    input_items().check_finite(numbers, rows, what)
    return values

  def prepare(self, inputs: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Token ids and pixels by modality, of raw inputs, for `encode_all`."""
    return {
      key: self.tokens(key, values)
      if self.modalities[key]["kind"] == "interface"
      else self.pixels(key, values)
      for key, values in inputs.items()
    }

  def read(
    self, inputs: Mapping[str, Sequence[Any]]
  ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tokens, pooled features and masks by letter, of raw inputs."""
    return self.encode_all(self.prepare(inputs))

  def encode_all(
    self, inputs: Mapping[str, Tensor]
  ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tokens, pooled features and masks by letter, of prepared inputs."""
    tokens, pooled, masks = {}, {}, {}
    for key, values in inputs.items():
      letter = self.modalities[key]["letter"]
      if self.modalities[key]["kind"] == "interface":
        tokens[letter] = self.encode_text(values)
        pooled[letter] = self.pool_text(tokens[letter], values)
        masks[letter] = values != self.options["text"]["pad_id"]
      else:
        valid = self.valid_tokens(key, values)
        tokens[letter] = self.encode(key, values)
        pooled[letter] = self.pool(key, tokens[letter], valid)
        if valid is not None:
          masks[letter] = valid
    for key in inputs:  # an image is a one-frame video
      letter, played = (self.modalities[key][k] for k in ("letter", "plays"))
      if played not in tokens:
        for values in (tokens, pooled, masks):
          if letter in values:
            values[played] = values[letter]
    return tokens, pooled, masks

  def tokens(self, key: str, texts: Any) -> Tensor:
    """Token ids [N, L] of texts or subtitles."""
    length = self.modalities[key]["max_length"]
    rows = [
      self.tokenizer.encode(self.reader.text(key, text), length)
      for text in self.lists({key: texts})[key]
    ]
    return torch.tensor(rows, device=self.device)

  def pixels(self, key: str, values: Any) -> Tensor:
    """Raw inputs of one modality as [N, T, Y, X, 3] for `encode`."""
    rows = [self.reader.pixels(key, x) for x in self.lists({key: values})[key]]
    return torch.stack(rows).to(self.device, self.temperature.dtype)

  # --------------------------------------------------------------- features
  def encode(self, key: str, pixels: Tensor) -> Tensor:
    """Tokens [B, T, L, D] of normalised frames [B, T, Y, X, 3]."""
    batch, frames = pixels.shape[:2]
    flat = pixels.flatten(0, 1)
    if key in self.embedding:
      x = self.embedding[key](flat)
      valid = self._valid(key, flat)
      if valid is not None:  # content of padding must not matter
        x = x.masked_fill(~valid[:, :, None], 0.0)
      x = self.vision(tokens=x, mask=valid)
    else:
      x = self.vision(flat)
    return x.unflatten(0, (batch, frames))

  def _valid(self, key: str, frames: Tensor) -> Tensor | None:
    """True [B, L] at tokens of frames that are not padding; None: all."""
    if not self.modalities[key].get("tokens", {}).get("padded"):
      return None
    valid: Any = self.embedding[key].valid
    return valid(frames)

  def valid_tokens(self, key: str, pixels: Tensor) -> Tensor | None:
    """True [B, T, L] at tokens of `encode` that are not padding; None: all.

    The class token of a frame is valid if any other token is.
    """
    valid = self._valid(key, pixels.flatten(0, 1))
    if valid is None:
      return None
    if self.config["class_token"]:
      valid = torch.cat([valid.any(1, keepdim=True), valid], 1)
    return valid.unflatten(0, pixels.shape[:2])

  def pool(
    self, key: str, tokens: Tensor, valid: Tensor | None = None
  ) -> Tensor:
    """One vector per row [B, D]: class token or mean, averaged over frames.

    `valid` [B, T, L] of `valid_tokens`: other tokens are ignored.
    """
    entry, frames = self.modalities[key], tokens.shape[1]
    mean = entry["pooling"] == "mean"
    x = masked_mean(tokens, valid, 2) if mean else tokens[:, :, 0]
    if frames > 1 and entry["context"] in self.frame_gain:
      x = x * (1 + resize_frames(self.frame_gain[entry["context"]], frames))
    x = masked_mean(x, None if valid is None else valid.any(2), 1)
    changes = self._changes(entry["context"], tokens, valid)
    return x if changes is None else x + changes[0][:, 0]

  def _changes(
    self, name: str, tokens: Tensor, valid: Tensor | None
  ) -> tuple[Tensor, Tensor | None] | None:
    """What changes between frames, one token [B, 1, D], and where there is one.

    `valid` [B, T] of frames or [B, T, L] of tokens. None: nothing is pooled.
    """
    if name not in self.frame_change or tokens.ndim != 4 or len(tokens[0]) < 2:
      return None
    both = None
    if valid is not None:
      valid = valid[..., None] if valid.ndim == 2 else valid
      both = (valid[:, 1:] & valid[:, :-1]).expand(-1, -1, tokens.shape[2])
      both = both.flatten(1)
    changes = (tokens[:, 1:] - tokens[:, :-1]).flatten(1, 2)
    there = None if both is None else both.any(1, keepdim=True)
    return self.frame_change[name](changes, both), there

  def features(self, letters: str, pooled: Mapping[str, Tensor]) -> Tensor:
    """Unit-norm embeddings [B, E] by the head of a letter or a group."""
    x = torch.cat([pooled[letter] for letter in letters], -1)
    x = self.contrastive_head[self._head_of(letters)](x).float()
    square = x.square().sum(-1, keepdim=True)
    return x * square.clamp(min=1e-24).rsqrt()

  def _head_of(self, letters: str) -> str:
    """The contrastive head of a letter or a group."""
    name = letters
    if len(letters) == 1:
      name = self.modalities[self.by_letter[letters]]["head"]
    if name not in self.contrastive_head:
      raise ValueError(
        f"no contrastive head for {letters!r}; there are "
        f"{', '.join(self.contrastive_head)}."
      )
    return name

  def context(
    self,
    letters: str,
    tokens: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    sample_index: Mapping[str, Tensor | int] | None = None,
  ) -> Context:
    """The context of a group.

    Args:
      letters: in order.
      tokens: by letter [B, T, L, D] of `encode`, or a subtitle's hidden states
        [B, L, W] of `encode_text`.
      masks: by letter: [B] presence, [B, T] valid frames, [B, T, L] valid
        tokens (`valid_tokens`), or [B, L] valid subtitle tokens.
      sample_index: by letter: row of the pair embedding.
    """
    values, valid = [], []
    for letter in letters:
      given = mask = (masks or {}).get(letter)
      x = self._project(letter, tokens[letter], mask)
      if mask is not None and mask.ndim == 3:
        mask = mask.any(2) if self.options["pool_frames"] else mask.flatten(1)
      if mask is not None and mask.ndim == 1:
        mask = mask[:, None].expand(x.shape[:2])
      elif mask is not None and tokens[letter].ndim == 4:
        mask = mask.repeat_interleave(x.shape[1] // mask.shape[1], 1)
      elif mask is not None and not self.options["mask_subtitle_padding"]:
        mask = None
      x, mask = self._with_changes(letter, tokens[letter], given, x, mask)
      if sample_index is not None and letter in sample_index:
        x = x + self._sample_vectors(sample_index[letter])
      values.append(x)
      valid.append(mask)
    context = torch.cat(values, 1)
    if self.options["context_positions"]:
      context = context + self.context_pos[: context.shape[1]]
    if all(mask is None for mask in valid):
      return Context(context)
    masks_ = [
      torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
      if mask is None
      else mask
      for x, mask in zip(values, valid, strict=True)
    ]
    return Context(context, torch.cat(masks_, 1))

  def _project(
    self, letter: str, tokens: Tensor, mask: Tensor | None = None
  ) -> Tensor:
    """Projects tokens of one letter and adds frame and type vectors."""
    name = self.modalities[self.by_letter[letter]]["context"]
    if tokens.ndim == 4 and self.options["pool_frames"]:
      first = int(self.config["class_token"])
      valid = None
      if mask is not None and mask.ndim == 3:
        valid = mask[:, :, first:]
      mean = masked_mean(tokens[:, :, first:], valid, 2)[:, :, None]
      tokens = torch.cat([tokens[:, :, :first], mean], 2)
    x = self.project[name](tokens)
    if tokens.ndim == 4:
      if name in self.frame_embed:
        vectors = resize_frames(self.frame_embed[name], x.shape[1])
        x = x + vectors[None, :, None]
      x = x.flatten(1, 2)
    return x + self.type_embed[name]

  def _with_changes(
    self,
    letter: str,
    tokens: Tensor,
    given: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
  ) -> tuple[Tensor, Tensor | None]:
    """Context tokens and their mask with the token of changes, if any, last."""
    name = self.modalities[self.by_letter[letter]]["context"]
    valid = None if given is None or given.ndim == 1 else given
    changes = self._changes(name, tokens, valid)
    if changes is None:
      return x, mask
    token, there = changes
    token = self.project[name](token) + self.type_embed[name]
    x = torch.cat([x, token], 1)
    if mask is None:
      return x, None
    some = mask.any(1, keepdim=True)
    return x, torch.cat([mask, some if there is None else some & there], 1)

  def _sample_vectors(self, index: Tensor | int) -> Tensor:
    index = torch.as_tensor(index, device=self.device)
    index = index.reshape(*index.shape, *(1,) * (2 - index.ndim))
    return self.sample_embed[index]

  # ------------------------------------------------------------------- text
  def encode_text(
    self,
    ids: Tensor,
    *,
    attention: str | None = None,
    mask: Tensor | None = None,
    prefix_length: int = 0,
    context: Context | None = None,
    joined: bool = False,
    sample_index: Tensor | int | None = None,
  ) -> Tensor:
    """Hidden states [B, L, W] of token ids, alone or with a context.

    Args:
      ids: [B, L].
      attention: "bidirectional", "causal" (own position included) or
        "prefix_causal": the first `prefix_length` tokens attend to each other
        only; None: that of the tower for embedding and matching.
      mask: [B, L], or [B, L, L] per query: true at visible tokens; None: not
        padding.
      prefix_length: see `attention`.
      context: tokens for cross-attention.
      joined: use the position table of joined captions.
      sample_index: row of the pair embedding.
    """
    if mask is None:
      mask = ids != self.options["text"]["pad_id"]
    at = torch.arange(ids.shape[1], device=ids.device)
    places = at[None]
    if mask.ndim == 2:  # then positions count visible tokens
      places = (mask.long().cumsum(1) - 1).clamp(min=0)
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    attention = attention or self.text.reading
    if attention != "bidirectional":
      last = at
      if attention == "prefix_causal":
        last = at.clamp(min=prefix_length - 1)
      mask = mask & (at[None] <= last[:, None])
    extra = 0.0 if sample_index is None else self._sample_vectors(sample_index)
    table = self.joined_pos if joined else None
    return self.text(ids, mask, places, context, table, extra)

  def pool_text(self, hidden: Tensor, ids: Tensor) -> Tensor:
    """The pooled state [B, W] of a text, of `encode_text(ids)`."""
    return self.text.pool(hidden, ids != self.options["text"]["pad_id"])

  def lm_logits(self, hidden: Tensor) -> Tensor:
    """Logits over the vocabulary."""
    return self.text.logits(hidden).float()

  def matching_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
    """Logits (no match, match) [B, 2] of a text encoded with a context.

    Args:
      hidden: of `encode_text(ids, context=...)`.
      ids: [B, L].
    """
    return self.matching_head(self.pool_text(hidden, ids)).float()

  # ------------------------------------------------------------- generation
  @torch.no_grad()
  def generate(
    self,
    context: Context | None,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_return: int = 1,
    top_p: float = 0.0,
    temperature: float = 1.0,
    seed: int = 0,
    prompt: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    batch_size: int | None = None,
  ) -> tuple[Tensor, Tensor]:
    """Decodes texts: greedy (one beam), beam search or nucleus sampling.

    BERT predicts each token at a [MASK] after the chosen ones. The score of a
    hypothesis is its summed log-probability over length ** penalty; the length
    includes the prompt, not the final [SEP].

    Args:
      context: tokens for cross-attention; None: none.
      max_new_tokens: largest number of tokens to choose, [SEP] included.
      num_beams: number of beams.
      length_penalty: exponent of the length.
      num_return: hypotheses per item, at most `num_beams`.
      top_p: above 0 with one beam: draws the tokens, see `NucleusSearch`.
      temperature: see `NucleusSearch`.
      seed: see `NucleusSearch`.
      prompt: tokens [B, Q] to continue (a question, then [CLS]); attention
        among all but the last is that of the tower: bidirectional in BERT.
        None: [CLS].
      prompt_mask: true at valid prompt tokens; None: not padding.
      batch_size: required without context and prompt.

    Returns:
      Sequences [B, num_return, L], best first, and their scores.
    """
    special = self.config["tokenizer"]
    batch = batch_size
    if context is not None:
      batch = len(context.values)
    elif prompt is not None:
      batch = len(prompt)
    if batch is None:
      raise ValueError("generate needs a context, a prompt or batch_size.")
    if prompt is None:
      prompt = torch.full((batch, 1), special["cls"], device=self.device)
    if prompt_mask is None:
      prompt_mask = prompt != special["pad"]
      prompt_mask[:, -1] = True
    search = BeamSearch(special, num_beams, length_penalty, prompt)
    if top_p > 0:
      if num_beams > 1:
        raise ValueError(
          f"a nucleus is sampled with one beam, not {num_beams}."
        )
      search = NucleusSearch(special, length_penalty, prompt)
      search.draw_from(top_p, temperature, seed)
    context = None if context is None else context.repeat(num_beams)
    visible = prompt_mask.repeat_interleave(num_beams, 0)
    for _ in range(max_new_tokens):
      logits = self._next_logits(search.rows(), visible, context)
      search.step(logits.unflatten(0, (batch, num_beams)))
      if all(search.done):
        break
    return search.result(max_new_tokens, num_return)

  def _next_logits(
    self, ids: Tensor, visible: Tensor, context: Context | None
  ) -> Tensor:
    """Logits [R, V] of the token after the ids [R, L]."""
    special, prompt = self.config["tokenizer"], visible.shape[1]
    if not self.text.next_token:
      ids = functional.pad(ids, (0, 1), value=special["mask"])
    both_ways = self.text.reading == "bidirectional"
    mask = functional.pad(visible, (0, ids.shape[1] - prompt), value=True)
    hidden = self.encode_text(
      ids,
      attention="prefix_causal" if both_ways else "causal",
      prefix_length=prompt - 1,
      mask=mask,
      context=context,
    )
    return self.lm_logits(hidden[:, -1])


class Tower(nn.Module):
  """See `MiCo.tower`."""

  def __init__(self, model: MiCo, key: str):
    super().__init__()
    self.model, self.key = model, key

  def forward(self, x: Tensor) -> Tensor:
    """Unit-norm embeddings [B, E] of frames [B, T, Y, X, 3] or ids [B, L]."""
    entry = self.model.modalities[self.key]
    if entry["kind"] == "interface":
      pooled = self.model.pool_text(self.model.encode_text(x), x)
    else:
      valid = self.model.valid_tokens(self.key, x)
      pooled = self.model.pool(self.key, self.model.encode(self.key, x), valid)
    return self.model.features(entry["letter"], {entry["letter"]: pooled})


class BeamSearch:
  """The state of beam search; one beam is greedy decoding.

  Source: the beam search of transformers 4.31, which the official MiCo code
  uses.
  """

  def __init__(
    self,
    special: Mapping[str, int],
    beams: int,
    length_penalty: float,
    prompt: Tensor,
  ):
    self.special, self.beams, self.penalty = special, beams, length_penalty
    self.prompt = prompt
    batch = len(prompt)
    self.sequences = [[row] * beams for row in prompt.tolist()]
    # All beams are equal at first, so the first step extends only one.
    self.scores = torch.full((batch, beams), -1e9, device=prompt.device)
    self.scores[:, 0] = 0.0
    self.kept: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    self.done = [False] * batch

  def rows(self) -> Tensor:
    """Ids [B * beams, L] to continue."""
    rows = [row for item in self.sequences for row in item]
    return torch.tensor(rows, device=self.prompt.device)

  def keep(self, item: int, score: float, sequence: list[int]) -> None:
    """Keeps a hypothesis if it is among the best of its item."""
    kept = self.kept[item]
    if len(kept) < self.beams:
      kept.append((score, sequence))
      return
    worst = min(range(self.beams), key=lambda i: kept[i][0])
    if score > kept[worst][0]:
      kept[worst] = (score, sequence)

  def step(self, logits: Tensor) -> None:
    """Extends every beam by one token; logits [B, beams, V]."""
    logprobs = torch.log_softmax(logits, -1)
    candidates = (logprobs + self.scores[:, :, None]).flatten(1)
    # Each beam has one [SEP] at most, so at least half of these continue.
    scores, flat = candidates.topk(2 * self.beams)
    vocabulary = logits.shape[-1]
    for item, (values, places) in enumerate(
      zip(scores.tolist(), flat.tolist(), strict=True)
    ):
      self._extend(item, values, places, vocabulary)

  def _extend(
    self, item: int, values: list[float], places: list[int], vocabulary: int
  ) -> None:
    length = len(self.sequences[item][0])
    following = []
    for rank, (score, place) in enumerate(zip(values, places, strict=True)):
      beam, token = divmod(place, vocabulary)
      sequence = [*self.sequences[item][beam], token]
      if token == self.special["sep"]:
        if rank < self.beams and not self.done[item]:
          self.keep(item, score / length**self.penalty, sequence)
          self.done[item] = self.beams == 1
      elif len(following) < self.beams:
        following.append((score, sequence))
    self.sequences[item] = [sequence for _, sequence in following]
    self.scores[item] = self.scores.new_tensor([s for s, _ in following])
    kept = self.kept[item]
    if len(kept) == self.beams > 1:
      # Done when no open beam can beat the worst kept hypothesis.
      attainable = values[0] / (length + 1) ** self.penalty
      worst = min(score for score, _ in kept)
      self.done[item] = self.done[item] or worst >= attainable

  def result(self, new: int, num_return: int) -> tuple[Tensor, Tensor]:
    """Padded sequences [B, num_return, L] and their scores, best first."""
    total = self.prompt.shape[1] + new
    captions, scores = [], []
    for item, sequences in enumerate(self.sequences):
      if not self.done[item]:  # open beams count with their full length
        for score, row in zip(self.scores[item], sequences, strict=True):
          self.keep(item, float(score) / total**self.penalty, row)
      best = sorted(self.kept[item], key=lambda pair: -pair[0])[:num_return]
      pad = self.special["pad"]
      captions.append([row + [pad] * (total - len(row)) for _, row in best])
      scores.append([score for score, _ in best])
    device = self.prompt.device
    return (
      torch.tensor(captions, device=device),
      torch.tensor(scores, device=device),
    )


class NucleusSearch(BeamSearch):
  """One beam whose tokens are drawn from the most probable ones.

  The nucleus is the smallest set of the most probable tokens whose
  probabilities sum to `top_p` at least.

  Source: arXiv:1904.09751.
  """

  def __init__(
    self, special: Mapping[str, int], length_penalty: float, prompt: Tensor
  ):
    super().__init__(special, 1, length_penalty, prompt)

  def draw_from(self, top_p: float, temperature: float, seed: int) -> None:
    """Sets the nucleus; each row draws from (seed, row) alone."""
    self.top_p, self.temperature = top_p, temperature
    self.generators = [
      torch.Generator().manual_seed((seed << 24) + row)
      for row in range(len(self.prompt))
    ]

  def step(self, logits: Tensor) -> None:
    """Extends every row by a drawn token; logits [B, 1, V]."""
    rows = logits[:, 0].float()
    logprobs = torch.log_softmax(rows, -1) + self.scores
    probability = torch.softmax(rows / self.temperature, -1).cpu()
    ordered, order = probability.sort(dim=-1, descending=True, stable=True)
    inside = (ordered.cumsum(-1) - ordered) < self.top_p
    inside[:, 0] = True
    for item, generator in enumerate(self.generators):
      weights = ordered[item] * inside[item]
      place = torch.multinomial(weights, 1, generator=generator)
      token = int(order[item, place])
      score = float(logprobs[item, token])
      # What follows an end is not read: padding.
      self._extend(
        item, [score] * 2, [token, self.special["pad"]], len(order[0])
      )


# -------------------------------------------------------------- raw inputs
@functools.cache
def input_package() -> ModuleType:
  """The package `mico_inputs` beside this file: decoders, preprocessing.

  Raises:
    ImportError: if it is not there.
  """
  folder, name = pathlib.Path(__file__).resolve().parent / INPUTS, INPUTS
  known = sys.modules.get(name)
  if known is None or pathlib.Path(known.__path__[0]).resolve() != folder:
    name += f"_{abs(hash(folder))}" if known else ""
    spec = importlib.util.spec_from_file_location(
      name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if not folder.is_dir() or spec is None or spec.loader is None:
      raise ImportError(
        f"{folder} is missing; copy the exported folder as a whole, or give "
        "`encode` prepared arrays."
      )
    known = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(known)
  importlib.import_module(f"{name}.items")
  return known


def input_items() -> ModuleType:
  """The module `mico_inputs.items`: checks and conversion of inputs."""
  return input_package().items


def contents(raw: Any) -> Any:
  """The bytes of a path or the array of a tensor, also in lists; else `raw`."""
  if isinstance(raw, (list, tuple)):
    return (list if isinstance(raw, list) else tuple)(map(contents, raw))
  if isinstance(raw, (str, os.PathLike)):
    path = pathlib.Path(raw)
    if not path.is_file():
      raise ValueError("no such file, or no regular one.")
    return path.read_bytes()
  return input_items().as_array(raw)


class Reader:
  """Prepares raw inputs by the settings of preprocessing.json."""

  def __init__(self, settings: Mapping[str, Any]):
    """Takes the content of preprocessing.json."""
    self.settings = settings

  def has(self, key: str) -> bool:
    """Whether the folder has the preprocessing of a modality."""
    return key in input_package().MODALITIES

  def lists(self, inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Lists of inputs; a bare one is a list of one."""
    return {key: input_items().as_list(key, v) for key, v in inputs.items()}

  def geometry(self, key: str, stated: Any) -> Any:
    """Sizes, and what is stated, for decoding one input."""
    package, settings = input_package(), self.settings
    inputs = settings["inputs"][key]
    trained = tuple(inputs.get("channels", ()))
    if package.MODALITIES[key].needs_channels:
      package.items.check_channels(key, stated.channels, trained)
    how = {k: inputs[k] for k in ("sampling", "fps", "stride") if k in inputs}
    return package.Geometry(
      frames=inputs["frames"],
      size=settings["image_size"],
      audio=package.config.AudioConfig(**settings["audio"]),
      unit=stated.unit,
      rate=stated.rate,
      channels=stated.channels or trained,
      columns=package.as_columns(inputs.get("columns", ())),
      max_pixels=settings["max_pixels"],
      **how,
    )

  def pixels(self, key: str, value: Any) -> Tensor:
    """One input as [T, Y, X, 3].

    Raises:
      ValueError: in one line that starts with the input's name.
      ImportError: naming the package that reads such files.
    """
    if not self.has(key):
      raise ValueError(
        f"{key}: the preprocessing of this modality is not part of the folder; "
        "give `encode` the prepared arrays."
      )
    return torch.as_tensor(self._named(self._pixels, key, value))

  def text(self, key: str, value: Any) -> str:
    """One text; raises as `pixels`."""
    return self._named(self._text, key, value)

  def _pixels(self, key: str, value: Any) -> np.ndarray:
    item = input_items().as_item(key, value)
    settings = self.settings["inputs"][key]
    modality = input_package().MODALITIES[key]
    raw = item.value() if callable(item.value) else item.value
    if isinstance(raw, str) and item.unit in modality.inline:
      raw = raw.encode()
    raw = contents(raw)
    unit = settings.get("unit", "")
    stated = input_items().stated_of(modality, item, raw, unit)
    mode = modality.modes[settings["mode"]]
    geometry = self.geometry(key, stated)
    array = mode.host(modality.decode(raw, geometry), geometry, None)
    return np.array(mode.to_pixels(array, geometry=geometry, xp=np))

  def _text(self, key: str, value: Any) -> str:
    item = input_items().as_item(key, value)
    raw = contents(item.value) if item.file else item.value
    return input_package().MODALITIES[key].decode(raw, None)

  def _named(self, read: Any, key: str, value: Any) -> Any:
    """The result of `read`; errors are one line and name the input."""
    name = input_items().name_of(key, value)
    try:
      return read(key, value)
    except (OSError, MemoryError):
      raise
    except ModuleNotFoundError as error:
      raise ImportError(
        f"{name}: to read it, pip install {error.name}."
      ) from error
    except Exception as error:  # decoders raise many kinds for broken files
      text = " ".join(str(error).split())
      if not isinstance(error, ValueError):
        text = f"cannot be used: {type(error).__name__}: {text[:200]}"
      raise input_package().DecodeError(
        text if text.startswith(f"{name}: ") else f"{name}: {text}"
      ) from error


# ----------------------------------------------------------------- tokenizers
class Tokenizer:
  """Text to `[cls] pieces [sep]` and back."""

  def __init__(self, special: Mapping[str, int]):
    self.special = special
    self.hidden = {special[k] for k in ("pad", "cls", "sep", "mask")}

  def pieces(self, text: str) -> list[int]:
    """Ids of a text, without cls and sep."""
    raise NotImplementedError

  def join(self, ids: list[int]) -> str:
    """The text of ids that are not special."""
    raise NotImplementedError

  def encode(self, text: str, max_length: int) -> list[int]:
    """Ids of a text, cut and padded to `max_length`."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids = self.pieces(" ".join(text.split()))[: max_length - 2]
    ids = [self.special["cls"], *ids, self.special["sep"]]
    return ids + [self.special["pad"]] * (max_length - len(ids))

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, special ones left out."""
    return self.join([i for i in ids if i not in self.hidden])


class WordPiece(Tokenizer):
  """BERT's WordPiece over vocab.txt, with the rules of config.json."""

  tidy = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
  cjk = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
  )
  marks = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")

  def __init__(self, special: Mapping[str, int], vocabulary: str):
    super().__init__(special)
    self.lower = special.get("lower_case", True)
    self.plain = special.get("strip_accents")
    self.plain = self.lower if self.plain is None else self.plain
    self.apart = special.get("split_cjk", True)
    lines = vocabulary.split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    self.ids = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    self.names = {i: piece for piece, i in self.ids.items()}
    self.hidden |= {self.ids["[UNK]"]}

  def pieces(self, text: str) -> list[int]:
    """Greedy longest-match pieces; marks in the text are kept whole."""
    ids = []
    for part in re.split(
      "(" + "|".join(map(re.escape, self.marks)) + ")", text
    ):
      if part in self.marks:
        ids.append(self.ids[part])
        continue
      for word in self.words(part):
        ids += self.split(word)
    return ids

  def words(self, text: str) -> list[str]:
    """Words; punctuation and CJK characters stand alone."""
    text = "".join(c.lower() for c in text) if self.lower else text
    clean = unicodedata.normalize("NFC", "".join(map(self.clean, text)))
    words = []
    for word in clean.split():
      word = word.lower() if self.lower else word
      if self.plain:
        marked = unicodedata.normalize("NFD", word)
        word = "".join(c for c in marked if unicodedata.category(c) != "Mn")
      words.append("".join(map(self.spaced, word)))
    return " ".join(words).split()

  def clean(self, char: str) -> str:
    """The character, a space, the character between spaces, or nothing."""
    category = unicodedata.category(char)
    if char in " \t\n\r" or category == "Zs":
      return " "
    if ord(char) in (0, 0xFFFD) or category.startswith("C"):
      return ""
    cjk = any(first <= ord(char) <= last for first, last in self.cjk)
    return f" {char} " if cjk and self.apart else char

  def spaced(self, char: str) -> str:
    """Punctuation between spaces."""
    mark = unicodedata.category(char).startswith("P")
    if char.isascii():
      mark = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if mark else char

  def split(self, word: str) -> list[int]:
    """The pieces of one word; [UNK] if a part is unknown."""
    ids, start = [], 0
    while start < len(word) <= 100:
      prefix = "##" if start else ""
      for end in range(len(word), start, -1):
        if prefix + word[start:end] in self.ids:
          ids.append(self.ids[prefix + word[start:end]])
          start = end
          break
      else:
        return [self.ids["[UNK]"]]
    return ids or [self.ids["[UNK]"]]

  def join(self, ids: list[int]) -> str:
    """Joined pieces without the spaces in front of punctuation."""
    text = " ".join(self.names.get(i, "[UNK]") for i in ids)
    text = text.replace(" ##", "").strip()
    for mark in self.tidy:
      text = text.replace(mark, mark.strip())
    return text


def _fields(data: bytes) -> list[tuple[int, Any]]:
  """(number, value) of the fields of a protocol buffer message."""
  fields, at = [], 0

  def number() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = data[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(data):
    key = number()
    if key & 7 == 0:
      fields.append((key >> 3, number()))
      continue
    size = {1: 8, 5: 4}.get(key & 7) or number()
    fields.append((key >> 3, data[at : at + size]))
    at += size
  return fields


def read_utf8(data: bytes) -> str:
  """Text of bytes, with U+FFFD for every invalid byte."""
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    rest = read_utf8(data[e.start + 1 :])
    return data[: e.start].decode() + "\ufffd" + rest


class SentencePiece(Tokenizer):
  """A SentencePiece unigram model, read from its file.

  Pieces have a score and a type: 1 normal, 2 unknown, 3 control, 4 defined by
  the user, 6 a byte. A text becomes the sequence of pieces of the highest
  summed score; characters without a piece become bytes.
  """

  def __init__(self, special: Mapping[str, int], model: bytes):
    super().__init__(special)
    fields = _fields(model)
    self.table = []  # (piece, score, type)
    for number, value in fields:
      if number == 1:
        piece = dict(_fields(value))
        score = torch.frombuffer(bytearray(piece[2]), dtype=torch.float32)
        self.table.append((piece[1].decode(), score.item(), piece.get(3, 1)))
    training = dict(_fields(dict(fields)[2]))
    self.rules = dict(_fields(dict(fields)[3]))
    if training.get(3, 1) != 1:
      raise ValueError("this SentencePiece model is not of type unigram.")
    self.bytes = training.get(35, 0)
    self.ids = {p: i for i, (p, _, t) in enumerate(self.table) if t in (1, 4)}
    self.unknown = next(i for i, (_, _, t) in enumerate(self.table) if t == 2)
    byte_ids = (i for i, (_, _, t) in enumerate(self.table) if t == 6)
    self.byte_ids = list(byte_ids)
    self.longest = max(map(len, self.ids))
    scores = [s for _, s, t in self.table if t == 1]
    self.lowest, self.highest = min(scores), max(scores)

  def pieces(self, text: str) -> list[int]:
    """The best segmentation (Viterbi)."""
    text = self.normalise(text)
    best: list[tuple[float, int, int]] = [(0.0, 0, -1)]  # score, start, id
    for end in range(1, len(text) + 1):
      choices = []
      for start in range(max(0, end - self.longest), end):
        i = self.ids.get(text[start:end])
        if i is not None:
          score = self.table[i][1]
          if self.table[i][2] == 4:
            score = (end - start) * self.highest - 0.1
          choices.append((best[start][0] + score, start, i))
      if not any(start == end - 1 for _, start, _ in choices):
        score = best[end - 1][0] + self.lowest - 10.0
        choices.append((score, end - 1, self.unknown))
      best.append(max(choices, key=lambda c: c[0]))
    nodes, end = [], len(text)
    while end:
      _, start, i = best[end]
      nodes.append((i, text[start:end]))
      end = start
    ids = []
    for i, piece in reversed(nodes):
      if i == self.unknown and self.bytes:
        ids += [self.byte_ids[b] for b in piece.encode()]
      elif i != self.unknown or ids[-1:] != [i]:
        ids.append(i)
    return ids

  def normalise(self, text: str) -> str:
    """Applies the model's character rules and marks spaces as U+2581."""
    rules = self.rules
    data, out, at = text.encode(), b"", 0
    while at < len(data):
      size, replacement = self.replaced(data[at : at + 64])
      out, at = out + replacement, at + size
    text = out.decode()
    if rules.get(4, 1):
      text = re.sub(" +", " ", text).strip(" ")
    if rules.get(3, 1) and text:
      text = " " + text
    return text.replace(" ", "\u2581") if rules.get(5, 1) else text

  def replaced(self, data: bytes) -> tuple[int, bytes]:
    """Length of the longest prefix with a rule, and its replacement.

    The rules are a trie (a double array of 32-bit units) and replacements.
    """
    blob = self.rules.get(2, b"")
    first = data[0]
    size = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
    if not blob:
      return size, data[:size]
    trie_bytes = int.from_bytes(blob[:4], "little")
    read = lambda i: int.from_bytes(blob[4 + 4 * i : 8 + 4 * i], "little")
    rule = (size, data[:size])
    unit = read(0)
    node = (unit >> 10) << ((unit & 512) >> 6)
    for length, byte in enumerate(data, 1):
      node ^= byte
      unit = read(node)
      if unit & 0x800000FF != byte:
        break
      node ^= (unit >> 10) << ((unit & 512) >> 6)
      if unit >> 8 & 1:  # a rule ends here
        start = 4 + trie_bytes + (read(node) & 0x7FFFFFFF)
        rule = (length, blob[start : blob.index(b"\0", start)])
    return rule

  def join(self, ids: list[int]) -> str:
    """Joined pieces; runs of bytes are read as UTF-8."""
    out, run = "", b""
    for i in [i for i in ids if 0 <= i < len(self.table)]:
      piece, _, kind = self.table[i]
      if kind == 6:
        run += bytes([self.byte_ids.index(i)])
        continue
      out, run = out + read_utf8(run), b""
      if kind != 3:
        out += " \u2047 " if kind == 2 else piece
    out = (out + read_utf8(run)).replace("\u2581", " ")
    return out.removeprefix(" ") if self.rules.get(3, 1) else out


def read_tokenizer(
  folder: pathlib.Path, special: Mapping[str, Any]
) -> Tokenizer:
  """The tokenizer of an exported folder."""
  if special["kind"] == "wordpiece":
    return WordPiece(special, (folder / "vocab.txt").read_text("utf-8"))
  model = (folder / "sentencepiece.model").read_bytes()
  return SentencePiece(special, model)


def read_weights(folder: pathlib.Path) -> dict[str, Tensor]:
  """All tensors of a folder, of one file or several with an index."""
  if not (folder / INDEX).is_file():
    return load_file(folder / WEIGHTS)
  index = json.loads((folder / INDEX).read_text())["weight_map"]
  tensors: dict[str, Tensor] = {}
  for name in sorted(set(index.values())):
    tensors |= load_file(folder / name)
  return tensors
