"""Tokens of graphs; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GraphEmbed(nn.Module):
  """Tokens of nodes and edges [B, L, C]: kind, weight, features, places."""

  def __init__(
    self,
    width: int,
    frame: Sequence[int],
    nodes: int = 64,
    features: int = 32,
  ):
    """Takes the width of tokens, the shape of a frame, and its parts."""
    super().__init__()
    self.nodes, self.end = nodes, 2 + features
    self.node = nn.Linear(features, width)
    self.edge = nn.Linear(1 + features, width)
    self.place = nn.Linear(frame[1] - self.end, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per node and edge."""
    x = torch.where(x[..., :1] > 0.5, x, 0.0)
    nodes = self.node(x[:, : self.nodes, 2 : self.end])
    edges = self.edge(x[:, self.nodes :, 1 : self.end])
    return torch.cat([nodes, edges], 1) + self.place(x[..., self.end :])

  def valid(self, x: Tensor) -> Tensor:
    """Nodes and edges that there are, [B, L]."""
    return x[..., 0] > 0.5
