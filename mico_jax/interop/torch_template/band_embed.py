"""Tokens of spectra; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BandEmbed(nn.Module):
  """Tokens of bands [B, bands, 3 pixels + 1]: groups of neighbours."""

  def __init__(self, width: int, frame: Sequence[int], group: int = 4):
    """Takes the width of tokens, the shape of a frame, and of groups."""
    super().__init__()
    self.group, self.pixels = group, frame[1] // 3
    self.proj = nn.Linear(group * 3 * self.pixels, width)

  def _flags(self, x: Tensor) -> Tensor:
    return x[..., 2 * self.pixels : 3 * self.pixels] > 0.5

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per group."""
    flags = self._flags(x).to(x)
    values = x[..., : 2 * self.pixels] * flags.repeat(1, 1, 2)
    rows = torch.cat([values, flags], -1)
    shape = (x.shape[0], x.shape[1] // self.group, -1)
    tokens = self.proj(rows.reshape(shape))
    band = flags.amax(-1) * (x[..., -1] > 0)
    lengths = (band * x[..., -1]).reshape(shape).sum(-1)
    places = lengths / band.reshape(shape).sum(-1).clamp(min=1) / 0.05
    width = self.proj.out_features
    half = -(-width // 2)
    like = {"dtype": torch.float64, "device": "cpu"}
    rates = 10_000.0 ** (-torch.arange(half, **like) / half)
    phases = places[..., None] * rates.to(x)
    waves = torch.cat([phases.sin(), phases.cos()], -1)[..., :width]
    return tokens + torch.where(places[..., None] > 0, waves, 0.0)

  def valid(self, x: Tensor) -> Tensor:
    """Groups with a value, [B, L]."""
    there = self._flags(x).any(-1)
    return there.reshape(x.shape[0], -1, self.group).any(-1)
