"""Pipelines of Hugging Face `transformers`, as functions over a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.config import ConfigError
from mico_jax.data.build.models import Batch
from mico_jax.modalities import DecodeError

_TEXT_KEYS = ("generated_text", "text")  # of what pipelines give


def load_pipeline(name: str, options: Mapping[str, Any]) -> Batch:
  """A pipeline that takes pictures, sounds or texts.

  Args:
    name: of the model, or its folder.
    options: `task` of the pipeline, and what else its stage says: `prompt`,
      `max_new_tokens`, `device`.

  Returns:
    A function of a list of pictures uint8 [Y, X, 3], of sounds (samples, rate)
    or of texts; it gives texts, or maps float32 [Y, X] for
    "depth-estimation".
  """
  import transformers

  task = options["task"]
  settings = {"device": options["device"]} if options.get("device") else {}
  pipe: Any = transformers.pipeline(task, model=name, **settings)

  def call(items: Sequence[Any]) -> list[Any]:
    inputs = [_input(item) for item in items]
    if task == "depth-estimation":
      return [np.asarray(r["predicted_depth"]) for r in pipe(inputs)]
    words = {k: v for k, v in options.items() if k == "max_new_tokens" and v}
    if task == "image-text-to-text":
      asked = [_asked(image, options.get("prompt", "")) for image in inputs]
      results = pipe(text=asked, return_full_text=False, **words)
    elif task == "text-generation":
      results = pipe(inputs, return_full_text=False, **words)
    else:
      results = pipe(inputs, **words)
    return [_text(result, task) for result in results]

  return call


def _input(item: Any) -> Any:
  if isinstance(item, np.ndarray):
    return Image.fromarray(item)
  if isinstance(item, tuple):
    return {"raw": item[0], "sampling_rate": item[1]}
  return item


def _asked(image: Any, prompt: str) -> list[dict[str, Any]]:
  """A chat of one question about a picture."""
  if not prompt:
    raise ConfigError("image-text-to-text needs a prompt (--set STAGE.prompt).")
  content = [
    {"type": "image", "image": image},
    {"type": "text", "text": prompt},
  ]
  return [{"role": "user", "content": content}]


def _text(result: Any, task: str) -> str:
  """The text of what a pipeline gives for one input.

  Raises:
    DecodeError: if there is none.
  """
  if isinstance(result, list) and len(result) == 1:
    result = result[0]
  if isinstance(result, Mapping):
    for key in _TEXT_KEYS:
      if isinstance(result.get(key), str):
        return result[key]
  raise DecodeError(f"the pipeline {task} gave no text but {result!r:.80}.")
