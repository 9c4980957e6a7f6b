"""The model as a folder for `open_clip.create_model("local-dir:...")`.

open_clip represents both towers exactly: the text tower as a BERT of
transformers (its `HFTextEncoder`), the encoder as its own CLIP tower or as a
model of timm, each followed by the contrastive head. `encode_image` and
`encode_text` equal `embed(image=...)` and `embed(text=...)`.

open_clip looks up the sizes of a BERT and of a timm model by an absolute path,
which is that of this folder: whoever moves the folder must correct it. The
encoder alone, whose tensors load by name, is a target of its own.

Source: open_clip 3.3 (`factory.py`, `model.py`, `hf_model.py`,
`timm_model.py`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from mico_jax.aliases import Params
from mico_jax.config import Config, ConfigError, ModelConfig, VisionConfig
from mico_jax.inference.self_check import SelfCheck, on_cpu
from mico_jax.interop.exporting import export, timm_folder, transformers_text
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.files.tensors import Item, item
from mico_jax.interop.importing import clip
from mico_jax.interop.names import timm_vision
from mico_jax.models.parameters import temperature_paths

WEIGHTS = "open_clip_model.safetensors"
TEXT = "text"  # subfolder with the config of BERT
HEADS = ("v", "t")
NATIVE_EPS = 1e-5  # of LayerNorm in open_clip's own towers
RESIZE = {"squash": "squash", "crop_flip": "shortest"}


def is_native(vision: VisionConfig) -> bool:
  """Whether open_clip's own CLIP tower is the encoder."""
  if not vision.pre_norm or vision.norm_eps != NATIVE_EPS:
    return False
  if vision.mlp not in ("gelu", "quick_gelu"):
    return False
  try:
    timm_vision.vision_entries(vision, "openclip")
  except ConfigError:
    return False
  return True


def _vision_items(params: Params, vision: VisionConfig) -> Iterator[Item]:
  """Tensors of the encoder and the contrastive head of images."""
  head = np.asarray(params["contrastive_head"]["v"]["kernel"])
  bare = dataclasses.replace(vision, clip_embed_dim=0)
  if is_native(vision):
    yield from timm_vision.vision_items(params, bare, "openclip")
    yield item("visual.proj", head)
    return
  for one in timm_vision.vision_items(params, bare, "timm"):
    yield dataclasses.replace(one, name=f"visual.trunk.{one.name}")
  yield item("visual.head.proj.weight", np.ascontiguousarray(head.T))


def items(params: Params, config: Config) -> Iterator[Item]:
  """All tensors of open_clip's model.

  Args:
    params: of the model.
    config: of the run.

  Raises:
    ConfigError: naming options that open_clip lacks.
  """
  yield from _vision_items(params, config.model.vision)
  for one in transformers_text.items(params, config, decoder=False):
    if one.name.startswith("bert."):
      name = one.name.removeprefix("bert.")
      yield dataclasses.replace(one, name=f"text.transformer.{name}")
  head = np.asarray(params["contrastive_head"]["t"]["kernel"])
  yield item("text.proj.weight", np.ascontiguousarray(head.T))
  scale = -math.log(_temperature(params, config.model))
  yield item("logit_scale", np.asarray(scale, np.float32))


def _temperature(params: Params, model: ModelConfig) -> float:
  """That of texts and pictures."""
  value = float(np.asarray(params["temperature"]))
  path = temperature_paths(model).get("v")
  if path is None:
    return value
  return value * math.exp(float(np.asarray(params[path[0]][path[1]])))


def settings(
  source: OpenedCheckpoint, place: pathlib.Path, image: Mapping[str, Any]
) -> dict[str, Any]:
  """The content of open_clip_config.json.

  Args:
    source: the checkpoint.
    place: path of the folder.
    image: preprocessing of images.
  """
  vision = source.config.model.vision
  native = is_native(vision)
  tower = (
    _native(vision)
    if native
    else {
      "image_size": vision.image_size,
      "timm_model_name": f"local-dir:{place}",
      "timm_model_pretrained": False,
      "timm_pool": "avg" if vision.encoder in timm_vision.STAGED else "token",
      "timm_proj": "linear",
    }
  )
  return {
    "model_cfg": {
      "embed_dim": source.config.model.embed_dim,
      "quick_gelu": native and vision.mlp == "quick_gelu",
      "vision_cfg": tower,
      "text_cfg": {
        "context_length": transformers_text.text_length(source),
        "hf_model_name": str(place / TEXT),
        "hf_tokenizer_name": str(place),
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
      },
    },
    "preprocess_cfg": _pixels(image),
  }


def _native(vision: VisionConfig) -> dict[str, Any]:
  return {
    "image_size": vision.image_size,
    "layers": vision.depth,
    "width": vision.width,
    "head_width": vision.width // vision.num_heads,
    "mlp_ratio": timm_vision.ratio(vision.mlp_dim, vision.width),
    "patch_size": vision.patch_size,
  }


def _pixels(image: Mapping[str, Any]) -> dict[str, Any]:
  return {
    **{k: list(image[k]) for k in ("mean", "std") if k in image},
    "interpolation": "bilinear",
    "resize_mode": RESIZE.get(image.get("place", ""), "squash"),
  }


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes both towers, the tokenizer and their configs.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export; `place` is the path that the config names.

  Raises:
    ConfigError: if the model has no head for images or texts, or neither
      open_clip nor timm has such an encoder.
  """
  config, image = source.config, timm_folder.image_of(source)
  place = options.place or folder
  absent = [head for head in HEADS if head not in config.model.heads]
  if absent:
    raise ConfigError(
      f"open_clip compares images with texts, and this model has no head "
      f"{' and '.join(absent)} (config.model.heads); export to openclip-vision "
      "for the encoder alone."
    )
  about = timm_folder.settings(config, image)
  export.write_tensors(
    report, "model", folder, items(source.params, config), name=WEIGHTS
  )
  transformers_text.write_tokenizer(source, folder, report)
  (folder / TEXT).mkdir()
  pad = source.tokenizer.info.pad
  for name, content in {
    # The sizes of timm's trunk, and this library's own preprocessing.
    "config.json": about,
    f"{TEXT}/config.json": transformers_text.model_config(
      config, pad, decoder=False
    ),
    clip.CONFIG: settings(source, place, image),
  }.items():
    export.write_document(report, "model", folder, name, content)
  report.notes += [
    f"{clip.CONFIG} names this folder by its path, {place}: correct it there "
    "(hf_model_name, hf_tokenizer_name, timm_model_name) if you move it",
    "only images and texts are exported; --to torch writes the other "
    "modalities, matching and captions",
    "open_clip cleans a text before its tokenizer (ftfy, HTML entities)",
    *timm_folder.pixel_notes(image),
  ]


def write_vision(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes the encoder's tensors in open_clip's names, without a model.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export.

  Raises:
    ConfigError: if open_clip has no such encoder.
  """
  vision, image = source.config.model.vision, timm_folder.image_of(source)
  tensors = timm_vision.vision_items(source.params, vision, "openclip")
  export.write_tensors(report, "encoder", folder, tensors, options)
  absent = timm_vision.left_out(source.params, vision, "openclip")
  if absent:
    report.notes.append(
      f"open_clip has no names for {export.summarise(absent)}: not written"
    )
  files = {"config.json": timm_folder.settings(source.config, image)}
  if vision.pre_norm:
    files[clip.VISION_CONFIG] = {
      "model_cfg": {
        "embed_dim": vision.clip_embed_dim,
        "quick_gelu": vision.mlp == "quick_gelu",
        "vision_cfg": _native(vision),
      },
      "preprocess_cfg": _pixels(image),
    }
  for name, content in files.items():
    export.write_document(report, "encoder", folder, name, content)


def compare(source: OpenedCheckpoint, folder: pathlib.Path) -> dict[str, float]:
  """Opens the folder with open_clip and runs it on the self-check's images.

  Returns:
    Largest absolute difference of token ids, of the embeddings and of the
    logarithms of the temperature.

  Raises:
    ImportError: without open_clip, timm, transformers or PyTorch.
  """
  import open_clip
  import torch

  image = timm_folder.image_of(source)
  check = SelfCheck(source.config, source.tokenizer)
  pixels = timm_folder.frames(check)
  texts = (
    transformers_text.TEXTS[:1] + transformers_text.TEXTS[3:]
  )  # texts that open_clip's cleaning does not change
  length = transformers_text.text_length(source)
  ids = np.stack([source.tokenizer.encode(x, length) for x in texts])
  with transformers_text.quiet():
    # The final path does not exist yet, so the config names the current one.
    final = (folder / clip.CONFIG).read_bytes()
    export.write_json(folder / clip.CONFIG, settings(source, folder, image))
    try:
      theirs = open_clip.create_model(f"local-dir:{folder}").eval()
      tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    finally:
      (folder / clip.CONFIG).write_bytes(final)
  frames = torch.from_numpy(pixels[:, 0].transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    got = {
      "ids": tokenizer(list(texts)),
      "embed/image": theirs.encode_image(frames, normalize=True),
      "embed/text": theirs.encode_text(
        torch.from_numpy(ids).long(), normalize=True
      ),
      "logit_scale": theirs.logit_scale.detach(),
    }
  want = _ours(check, source.params, ids, pixels)
  return {
    name: float(np.abs(value.numpy().astype("f8") - want[name]).max())
    for name, value in got.items()
  }


def _ours(
  check: SelfCheck,
  params: Params,
  ids: Int[np.ndarray, "B L"],
  pixels: Float[np.ndarray, "N 1 Y X 3"],
) -> dict[str, np.ndarray]:
  """Our outputs for the same arrays, in float32 on CPU."""

  @jax.jit
  def run(params: Any, ids: Any, pixels: Any) -> dict[str, Any]:
    model = check.model
    image = model.pool(params, "image", model.encode(params, "image", pixels))
    text = model.pool_text(model.text(params, ids), ids)
    return {
      "embed/image": model.embed(params, "v", {"v": image}),
      "embed/text": model.embed(params, "t", {"t": text}),
    }

  with on_cpu():
    values = jax.device_get(run(dict(params), ids, pixels))
  temperature = _temperature(params, check.model.config)
  return {**values, "ids": ids, "logit_scale": -np.log(temperature)}
