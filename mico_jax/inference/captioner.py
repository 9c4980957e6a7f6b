"""A checkpoint as the captioner of `mico-jax data build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.inference.omni_model import load


def load_captioner(
  path: str, options: Mapping[str, Any]
) -> Callable[[Sequence[Any]], list[str]]:
  """A function of raw inputs of one modality that writes a caption for each.

  Args:
    path: workdir of a run, or one of its checkpoint folders.
    options: `modality`: key of what the inputs are; `batch`: the most of them;
      `max_new_tokens`: 0: as the checkpoint says.

  Raises:
    ConfigError: if the checkpoint does not take that modality.
  """
  model, key = load(path, batch_size=options["batch"]), options["modality"]
  if key not in model.modalities:
    raise ConfigError(
      f"mico:{path} takes no {key!r} input; it takes: "
      f"{', '.join(model.modalities)}."
    )
  longest = options["max_new_tokens"] or None

  def call(items: Sequence[Any]) -> list[str]:
    inputs: dict[str, Any] = {key: list(items)}
    return model.caption(max_new_tokens=longest, **inputs)

  return call
