"""The reference page of models, made by `mico_jax.docs.tables`."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from mico_jax import config, pretrained
from mico_jax.docs.markdown import HEAD, markdown_table
from mico_jax.models import build, parameters
from mico_jax.models.presets import PRESETS, VISION

# Results of packaged weights that the page shows: R@1 of a text's scene.
_RECALL = re.compile(r"retrieval/t->(\w+)/R@1")


def _millions(tree: Any) -> str:
  """Number of parameters of a tree of shapes."""
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
  return f"{total / 1e6:,.1f} M"


def _encoder_cells(vision: config.VisionConfig) -> tuple[Any, ...]:
  """Size and pixels of an encoder."""
  if vision.stage_depths:
    widths, depths = (
      " ".join(map(str, x)) for x in (vision.stage_widths, vision.stage_depths)
    )
    return f"{vision.encoder}: {widths} x {depths}", vision.image_size
  size = f"{vision.width} x {vision.depth}, {vision.num_heads} heads"
  return f"{size}, patch {vision.patch_size}", vision.image_size


def _model_row(name: str, model: config.ModelConfig) -> tuple[Any, ...]:
  text, shapes = model.text, build(model).abstract_params()
  return (
    f"`{name}`",
    *_encoder_cells(model.vision),
    f"{text.width} x {text.depth}, {text.num_heads} heads",
    model.embed_dim,
    _millions(shapes["vision"]),
    _millions(shapes),
  )


def _encoder_row(name: str, vision: config.VisionConfig) -> tuple[Any, ...]:
  encoder, _ = parameters.towers(config.ModelConfig(vision=vision))
  pixels = np.zeros((1, vision.image_size, vision.image_size, 3), np.float32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), pixels)
  sizes = {"image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim"}
  default = config.VisionConfig()
  options = (
    f"`{f.name}={getattr(vision, f.name)!r}`"
    for f in dataclasses.fields(vision)
    if f.name not in sizes
    and not f.name.startswith("stage_")
    and getattr(vision, f.name) != getattr(default, f.name)
  )
  return (
    f"`{name}`",
    *_encoder_cells(vision),
    _millions(shapes["params"]),
    " ".join(options),
  )


def _weights_row(name: str) -> tuple[Any, ...]:
  """The row of packaged weights."""
  about = pretrained.describe(name)
  scores = ", ".join(
    f"{found.group(1)} {value:.3f}"
    for result, value in about.scores.items()
    if (found := _RECALL.fullmatch(result))
  )
  return (
    f"`{name}`",
    f"{about.parameters / 1e6:.1f} M in {about.dtype}, "
    f"{about.bytes / 1e6:.1f} MB",
    pretrained.WEIGHTS[name],
    about.data,
    about.licence,
    f"text -> {scores}",
    f"`{about.command}` at {about.commit}, `{about.evaluation}`",
  )


def weights_section() -> str:
  """The part of the page about weights that can be loaded."""
  text = (
    "\n## Weights\n\n`mico_jax.list_pretrained()`: these come with the "
    'package, and `mico_jax.load("NAME")`, `--checkpoint NAME` and `--init '
    "NAME` take them (a file or folder of that name comes first). They are "
    "unpacked into the cache folder of the user. Scores are R@1 on the test "
    "scenes; letters are those of the [modalities](modalities.md).\n\n"
  )
  text += markdown_table(
    ("name", "size", "modalities", "data", "licence", "scores", "commands"),
    map(_weights_row, pretrained.WEIGHTS),
  )
  text += (
    "\n`hf://owner/name` (`hf://owner/name@revision`, extra `hub`) is taken "
    "wherever a checkpoint is: a workdir or step folder as a run writes it, or "
    "a folder of `mico-jax export --to torch`. Nothing in it is run or "
    "unpickled, and files of the optimizer's state are not fetched.\n\nWeights "
    "of others are read by `mico-jax import`, on their authors' terms; some "
    "that its readers know:\n\n"
  )
  return text + markdown_table(
    ("weights", "parameters", "data", "licence", "command"),
    (
      (
        f"`{one.address}`",
        f"{one.parameters} M",
        one.data,
        one.licence,
        f"`{one.command}`",
      )
      for one in pretrained.FOREIGN
    ),
  )


def models_page() -> str:
  """The page about the packaged models, their weights and encoders."""
  text = f"{HEAD}\n# Models\n\n`mico_jax.list_models()`:\n\n"
  text += markdown_table(
    (
      "name",
      "encoder",
      "pixels",
      "text tower",
      "joint",
      "of encoder",
      "of all",
    ),
    (_model_row(name, model) for name, model in PRESETS.items()),
  )
  text += weights_section()
  text += (
    "\n## Encoders\n\n`mico_jax.list_encoders()`; use one as `model.vision` of "
    "any config (`mico_jax.models.VISION[name]`):\n\n"
  )
  return text + markdown_table(
    ("name", "size", "pixels", "parameters", "options"),
    (_encoder_row(name, vision) for name, vision in VISION.items()),
  )
