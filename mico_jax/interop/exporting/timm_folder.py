"""The encoder as a folder for `timm.create_model("local-dir:...")`.

`config.json` names one of timm's architectures of the right class and, as
`model_args`, every option in which the encoder differs from it, as timm selects
a class by architecture only. Options that timm takes no argument for (the
epsilon of a vision transformer's LayerNorm) select the architecture, or are
refused. The encoder's projection to CLIP's space becomes the classifier.

Source: timm 1.0 (`_hub.py`, `_factory.py`: the keys of the file).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config, ConfigError, VisionConfig
from mico_jax.inference.self_check import (
  VARIANTS,
  SelfCheck,
  make_inputs,
  on_cpu,
)
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.names import timm_vision
from mico_jax.modalities import MODALITIES

# Resizing of a mode -> crop_mode of timm.
CROPS = {"squash": "squash", "crop_flip": "center"}
ANTIALIASED = "resize_smooth"


def model(config: VisionConfig) -> tuple[str, dict[str, Any]]:
  """Architecture and arguments that build the encoder in timm.

  Raises:
    ConfigError: if no architecture has its options.
  """
  if config.encoder in timm_vision.STAGED:
    timm_vision.staged_entries(config)  # refuses what timm lacks
    return _staged(config)
  timm_vision.timm_entries(config)
  common: dict[str, Any] = {
    "img_size": config.image_size,
    "patch_size": config.patch_size,
    "num_classes": config.clip_embed_dim,
    "global_pool": "token",
    "embed_dim": config.width,
    "depth": config.depth,
    "num_heads": config.num_heads,
    "mlp_ratio": timm_vision.ratio(config.mlp_dim, config.width),
    "init_values": config.layer_scale or None,
  }
  if not timm_vision.is_eva(config):
    if config.norm_eps not in timm_vision.PLAIN:
      raise ConfigError(
        f"timm has no vision transformer with norm_eps={config.norm_eps} "
        f"(config.model.vision), only with {sorted(timm_vision.PLAIN)}; export "
        "to torch or safetensors instead."
      )
    return timm_vision.PLAIN[config.norm_eps], common | {
      "qkv_bias": config.qkv_bias == "all",
      "pre_norm": config.pre_norm,
      "act_layer": config.mlp,
    }
  swiglu, post = config.mlp == "swiglu", config.norm == "post"
  name = (
    "eva02_base_patch16_clip_224" if swiglu else "eva_giant_patch14_clip_224"
  )
  common |= {
    "qkv_bias": config.qkv_bias == "qv",
    "qkv_fused": not swiglu,
    "swiglu_mlp": swiglu,
    "scale_mlp": config.sub_norm,
    "scale_attn_inner": config.sub_norm,
    "use_rot_pos_emb": bool(config.rope_grid),
    "use_post_norm": post,
  }
  if config.rope_grid:
    common["ref_feat_shape"] = [config.rope_grid, config.rope_grid]
  return "eva02_enormous_patch14_clip_224" if post else name, common


def _staged(config: VisionConfig) -> tuple[str, dict[str, Any]]:
  """Architecture and arguments of a Swin or a ConvNeXt V2."""
  if config.encoder == "swin":
    return "swin_base_patch4_window7_224", {
      "img_size": config.image_size,
      "patch_size": config.patch_size,
      "embed_dim": config.stage_widths[0],
      "depths": list(config.stage_depths),
      "num_heads": list(config.stage_heads),
      "window_size": config.window_size,
      "mlp_ratio": timm_vision.ratio(config.mlp_dim, config.width),
      "num_classes": 0,
    }
  return "convnextv2_base", {
    "patch_size": config.patch_size,
    "depths": list(config.stage_depths),
    "dims": list(config.stage_widths),
    "norm_eps": config.norm_eps,
    "head_norm_first": True,
    "num_classes": 0,
  }


def settings(config: Config, image: Mapping[str, Any]) -> dict[str, Any]:
  """The content of config.json.

  Args:
    config: of the run.
    image: preprocessing of frames, stored under "preprocessing" for imports.
  """
  vision = config.model.vision
  architecture, arguments = model(vision)
  staged = vision.encoder in timm_vision.STAGED
  size = vision.image_size
  first = "stem.0" if vision.encoder == "convnext" else "patch_embed.proj"
  about: dict[str, Any] = {
    "input_size": [3, size, size],
    "fixed_input_size": vision.encoder != "convnext",
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": CROPS.get(image.get("place", ""), "squash"),
    "num_classes": arguments["num_classes"],
    "first_conv": first,
    "classifier": "head.fc" if staged else "head",
  }
  if staged:
    about["pool_size"] = [size // (8 * vision.patch_size)] * 2
  about |= {k: list(image[k]) for k in ("mean", "std") if k in image}
  return {
    "architecture": architecture,
    "num_classes": arguments["num_classes"],
    "num_features": vision.width,
    "model_args": {k: v for k, v in arguments.items() if v is not None},
    "pretrained_cfg": about,
    "preprocessing": dict(image),
  }


def image_of(source: OpenedCheckpoint) -> Mapping[str, Any]:
  """The evaluation preprocessing of images; {}: the model takes none."""
  document = exporter.preprocessing_json(source.config, source.tokenizer)
  return document["inputs"].get("image", {})


def pixel_notes(image: Mapping[str, Any]) -> list[str]:
  """Notes on how the library's own preprocessing differs from ours."""
  mode = image.get("mode", "none")
  if "mean" not in image or image.get("place") not in CROPS:
    return [
      f"preprocessing {mode} does not exist there; prepare images with mico_jax"
    ]
  if image.get("resize") == ANTIALIASED:
    return []
  return [
    f"preprocessing {mode} resizes without antialiasing, the library's own "
    "preprocessing with it: equal for images of the encoder's size only"
  ]


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes one file of weights, as timm reads no shards, and config.json.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export; none applies.

  Raises:
    ConfigError: if timm has no such encoder.
  """
  del options
  vision, image = source.config.model.vision, image_of(source)
  about = settings(source.config, image)
  items = timm_vision.vision_items(source.params, vision, "timm")
  export.write_tensors(report, "encoder", folder, items)
  absent = timm_vision.left_out(source.params, vision, "timm")
  if absent:
    report.notes.append(
      f"timm has no names for {export.summarise(absent)}: not written"
    )
  report.notes += pixel_notes(image)
  export.write_document(report, "encoder", folder, "config.json", about)


def frames(check: SelfCheck) -> Float[np.ndarray, "B 1 Y X 3"]:
  """Preprocessed frames of the self-check's images."""
  inputs = make_inputs(check.preparer)
  key = next(k for k in check.preparer.keys if MODALITIES[k].letter == "v")
  rows = [
    check.preparer.prepare_one(key, inputs[f"{key}/{v}"]) for v in VARIANTS
  ]
  geometry = check.preparer.geometry(key)
  mode = check.preparer.mode(key)
  pixels = mode.to_pixels(np.stack(rows), geometry=geometry, xp=np)
  return np.array(pixels[:, :1], np.float32)


def compare(source: OpenedCheckpoint, folder: pathlib.Path) -> dict[str, float]:
  """Opens the folder with timm and runs it on the self-check's images.

  Returns:
    Largest absolute difference of the tokens, and of the pooled features.

  Raises:
    ImportError: without timm or PyTorch.
  """
  import timm
  import torch

  check = SelfCheck(source.config, source.tokenizer)
  pixels = frames(check)
  theirs: Any = timm.create_model(
    f"local-dir:{folder}", pretrained=True, num_classes=0
  ).eval()
  images = torch.from_numpy(pixels[:, 0].transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    tokens = theirs.forward_features(images)
    pooled = theirs.forward_head(tokens)
    if source.config.model.vision.encoder == "convnext":  # channels first
      tokens = tokens.permute(0, 2, 3, 1)
  want = ours(check, source, pixels)
  got = {"tokens": tokens.reshape(want["tokens"].shape), "pooled": pooled}
  return {
    name: float(np.abs(value.numpy().astype("f8") - want[name]).max())
    for name, value in got.items()
  }


def ours(
  check: SelfCheck,
  source: OpenedCheckpoint,
  pixels: Float[np.ndarray, "B 1 Y X 3"],
) -> dict[str, np.ndarray]:
  """Tokens and pooled features of single frames, in float32 on CPU."""
  import jax

  @jax.jit
  def run(params: Any, pixels: Any) -> dict[str, Any]:
    tokens = check.model.encode(params, "image", pixels)
    pooled = check.model.pool(params, "image", tokens)
    return {"tokens": tokens[:, 0], "pooled": pooled}

  with on_cpu():
    return jax.device_get(run(dict(source.params), pixels))
