"""Tokens of sampled signals; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SignalEmbed(nn.Module):
  """Tokens of a sampled signal [B, time, C]: windows with own positions."""

  def __init__(self, width: int, frame: Sequence[int], window: int = 8):
    """Takes the width of tokens, the shape of a frame, samples per token."""
    super().__init__()
    length, channels = frame
    self.proj = nn.Linear(window * channels, width)
    self.positions = nn.Parameter(torch.zeros(length // window, width))

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per window."""
    # Sizes are asked of `shape`: traced, `len` would fix them.
    return self.proj(x.reshape(x.shape[0], -1, self.proj.in_features)) + (
      self.positions
    )
