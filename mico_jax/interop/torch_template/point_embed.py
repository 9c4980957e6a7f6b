"""Tokens of point clouds; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class PointEmbed(nn.Module):
  """Tokens of groups of points [B, groups, size, 8], one each."""

  def __init__(self, width: int, frame: Sequence[int], hidden: int = 128):
    """Takes the width of tokens, the shape of a frame, and of layers inside."""
    super().__init__()
    self.fc1 = nn.Linear(frame[-1] + 2, hidden)
    self.fc2 = nn.Linear(hidden, hidden)
    self.fc3 = nn.Linear(2 * hidden, 2 * hidden)
    self.fc4 = nn.Linear(2 * hidden, width)
    self.place1 = nn.Linear(3, hidden)
    self.place2 = nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per group."""
    there = x[..., -1:] > 0.5
    x = torch.where(there, x, 0.0)
    centre = x[:, :, :1, :3]
    near = torch.where(there, x[..., :3] - centre, 0.0)
    h = torch.cat([near, x[..., :3], x[..., 3:7]], -1)
    h = self.fc2(gelu(self.fc1(h)))
    common = self._largest(h, there).expand(h.shape)
    h = gelu(self.fc3(torch.cat([h, common], -1)))
    tokens = self._largest(self.fc4(h), there)
    return (tokens + self.place2(gelu(self.place1(centre))))[:, :, 0]

  def _largest(self, values: Tensor, there: Tensor) -> Tensor:
    """The largest values of the points that are there."""
    return values.masked_fill(~there, -1e4).amax(2, keepdim=True)

  def valid(self, x: Tensor) -> Tensor:
    """Groups that have a point, [B, G]."""
    return x[:, :, 0, -1] > 0.5
