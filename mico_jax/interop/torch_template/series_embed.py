"""Tokens of series with gaps; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeriesEmbed(nn.Module):
  """Tokens of values and flags [B, time, 2 columns]: windows of time."""

  def __init__(
    self,
    width: int,
    frame: Sequence[int],
    columns: int = 1,
    channels: int = 1,
    window: int = 16,
  ):
    """Takes the width of tokens, the shape of a frame, and how it is cut."""
    super().__init__()
    self.columns, self.channels, self.window = columns, channels, window
    self.proj = nn.Linear((window + 2) * frame[1], width)

  def _positions(self, count: int) -> Tensor:
    """Sinusoids [L, width], of the CPU."""
    # No buffer: models are also made without memory, on the device "meta".
    width = self.proj.out_features
    half = -(-width // 2)
    like = {"dtype": torch.float64, "device": "cpu"}
    rates = 10_000.0 ** (-torch.arange(half, **like) / half)
    phases = torch.arange(count, **like)[:, None] * rates
    return torch.cat([phases.sin(), phases.cos()], 1)[:, :width]

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per window."""
    flags = x[..., self.columns :]
    x = torch.cat([x[..., : self.columns] * flags, flags], -1)
    # Sizes are asked of `shape`: traced, `len` would fix them.
    edge = torch.zeros_like(x[:, :1])
    wide = torch.cat([edge, x, edge], 1)
    inner = x.reshape(x.shape[0], -1, self.window, x.shape[2])
    before = wide[:, 0 : x.shape[1] : self.window, None]
    after = wide[:, self.window + 1 :: self.window, None]
    windows = torch.cat([before, inner, after], 2)
    return self.proj(windows.flatten(2)) + self._positions(inner.shape[1]).to(x)

  def valid(self, x: Tensor) -> Tensor:
    """Tokens with a value of any channel, [B, L]."""
    there = x[..., self.columns : self.columns + self.channels] > 0.5
    parts = there.reshape(x.shape[0], -1, self.window * self.channels)
    return parts.any(-1)
