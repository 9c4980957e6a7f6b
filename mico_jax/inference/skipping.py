"""Inputs that cannot be used: an error, or rows of the result without a value.

A result keeps one row for each input whatever happens, so that it still lines
up with the lists that were given.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax.modalities import DecodeError
from mico_jax.modalities.items import NOT_FINITE, name_of, not_finite

_NAMED = 5  # in the warning


class Skipped:
  """The inputs of one call that cannot be used.

  Attributes:
    errors: row -> why it has no value.
  """

  def __init__(self, on_error: str = "raise"):
    """Takes what to do about them.

    Raises:
      ValueError: for anything but "raise" and "skip".
    """
    if on_error not in ("raise", "skip"):
      raise ValueError(f'on_error={on_error!r}: must be "raise" or "skip".')
    self._raises = on_error == "raise"
    self.errors: dict[int, DecodeError] = {}

  def add(self, row: int, error: DecodeError) -> None:
    """Notes that an input has no value.

    Raises:
      DecodeError: the error itself, unless inputs are skipped.
    """
    if self._raises:
      raise error
    self.errors.setdefault(row, error)

  def finite(
    self,
    values: Float[np.ndarray, "N ..."],
    part: Mapping[str, Sequence[Any]],
    rows: Int[np.ndarray, " N"],
    what: str,
  ) -> Bool[np.ndarray, " N"]:
    """Notes the rows whose output is not finite; returns which ones are.

    Args:
      values: outputs of the model.
      part: their inputs, by modality.
      rows: their places among all inputs.
      what: of the model the values are, begins the message.

    Raises:
      DecodeError: naming the first such input, unless inputs are skipped.
    """
    bad = not_finite(values)
    for i in np.flatnonzero(bad).tolist():
      names = [name_of(key, inputs[i]) for key, inputs in part.items()]
      error = DecodeError(f"{' + '.join(names)}: {what} {NOT_FINITE}")
      self.add(int(rows[i]), error)
    return ~bad

  def tell(self, count: int) -> None:
    """Warns of what was left out.

    Args:
      count: of all inputs.

    Raises:
      DecodeError: the first error, if no input could be used.
    """
    if not self.errors:
      return
    errors = sorted(self.errors.items())
    if len(errors) == count:
      raise errors[0][1]
    named = "; ".join(f"row {row}: {error}" for row, error in errors[:_NAMED])
    more = f"; and {len(errors) - _NAMED} more" * (len(errors) > _NAMED)
    warnings.warn(
      f"{len(errors)} of {count} inputs have no value: {named}{more}",
      UserWarning,
      stacklevel=4,
    )
