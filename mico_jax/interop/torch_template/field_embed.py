"""Tokens of rows of tables; an exported folder with such takes this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FieldEmbed(nn.Module):
  """Tokens of fields [B, fields, 2 + bins]: state, category, shares."""

  def __init__(self, width: int, frame: Sequence[int], rows: int = 1024):
    """Takes the width of tokens, the shape of a frame, and of the table."""
    super().__init__()
    fields, columns = frame
    self.numbers = nn.Parameter(torch.zeros(fields, columns - 2, width))
    self.categories = nn.Parameter(torch.zeros(rows + 1, width))
    self.missing = nn.Parameter(torch.zeros(fields, width))
    self.fields = nn.Parameter(torch.zeros(fields, width))

  def forward(self, x: Tensor) -> Tensor:
    """Returns one token per field."""
    state = x[..., :1]
    shares = torch.where(state == 1, x[..., 2:], 0.0)
    category = torch.where(state == 2, x[..., 1:2], 0.0)[..., 0].long()
    value = torch.einsum("bfk,fkd->bfd", shares, self.numbers)
    value = torch.where(state == 2, self.categories[category], value)
    value = torch.where(state == 3, self.missing, value)
    return self.fields + value

  def valid(self, x: Tensor) -> Tensor:
    """Fields that there are, missing values too, [B, fields]."""
    return x[..., 0] > 0.5
