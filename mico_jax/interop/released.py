"""The folder that the original code loads: `ckpt/model_step_N.pt`, `log/`.

Names and layout follow `interop.mico`; an imported checkpoint gives back the
tensors that it was imported from, byte for byte.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from mico_jax.config import Config, ConfigError
from mico_jax.interop import (
  export,
  mico,
  originals,
  torch_archive,
  tower_names,
)
from mico_jax.interop.export import Report, Source
from mico_jax.interop.sharded import Item, item

# Encoders of the original by (width, depth, patch size).
ENCODER_TYPES = {
  (1408, 40, 14): "evaclip01_giant",
  (1024, 24, 14): "evaclip02_large",
  (768, 12, 16): "evaclip02_base",
  (1792, 64, 14): "evaclip02_bige",
}


BERT_BASE = (768, 12, 12)  # width, layers and heads of its text tower


def hps(config: Config) -> dict[str, Any]:
  """The content of log/hps.json, as far as the original reads it.

  Encoders and text towers of sizes that the original has no name for are
  written out under `tiny_vision` and `tiny_bert`.
  """
  vision, text, model = config.model.vision, config.model.text, config.model
  lengths = config.data.tokenizer.max_length
  size = (vision.width, vision.depth, vision.patch_size)
  settings: dict[str, Any] = {
    "model_type": "mico",
    "vision_encoder_type": ENCODER_TYPES.get(size, "evaclip01_giant"),
    "audio_encoder_type": "shared_vision",
    "frame_embedding_type": "adaptive",
    "vision_resolution": vision.image_size,
    "checkpointing": False,
    "frozen_vision": False,
    "frozen_audio": False,
    "itm_ratio": config.objectives.matching.weight,
    "contra_dim": model.embed_dim,
    "max_vision_sample_num": model.frame_table.get("video", 1),
    "max_audio_sample_num": model.frame_table.get("audio", 1),
    "max_depth_sample_num": model.frame_table.get("depth", 1),
    "max_caption_len": lengths.get("default", 40),
    "max_omni_caption_len": lengths.get("omni", 70),
    "max_subtitle_len": lengths.get("subtitle", 70),
    "beam_size": 3,
    "captioner_mode": False,
    "generate_nums": 1,
    "pool_video": model.pool_frames,
  }
  if size not in ENCODER_TYPES:
    settings["tiny_vision"] = {
      "embed_dim": vision.clip_embed_dim,
      "layers": vision.depth,
      "width": vision.width,
      "head_width": vision.width // vision.num_heads,
      "patch_size": vision.patch_size,
      "image_size": vision.image_size,
      "mlp_ratio": vision.mlp_dim / vision.width,
      "drop_path_rate": vision.drop_path_rate,
      "postnorm": vision.norm == "post",
    }
  if (text.width, text.depth, text.num_heads) != BERT_BASE:
    settings["tiny_bert"] = {
      "vocab_size": text.vocab_size,
      "hidden_size": text.width,
      "num_attention_heads": text.num_heads,
      "num_hidden_layers": text.depth,
      "intermediate_size": text.mlp_dim,
      "max_position_embeddings": text.max_positions,
    }
  return {"model_cfg": settings}


def items(source: Source) -> tuple[list[Item], dict[str, str]]:
  """Tensors under the original's names, and which share their values.

  Raises:
    ConfigError: naming the parameters that it cannot hold or lacks.
  """
  config = source.config.model
  try:
    table = mico.table_of(source.params, config)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  patch = config.vision.patch_size
  found = list(tower_names.entry_items(source.params, table, patch_size=patch))
  found += [item(k, v) for k, v in mico.buffers(config).items()]
  by_name = {one.name: one for one in found}
  for copy, original in mico.TIED.items():
    found.append(dataclasses.replace(by_name[original], name=copy))
  missing = [name for name in EXPECTED if name not in by_name]
  if missing:
    raise ConfigError(
      "the original expects tensors that this model has not: "
      f"{export.summarise(missing)}."
    )
  return found, mico.TIED


# What the original's modules always hold besides the towers.
EXPECTED = (
  *(f"contra_head_{x}.linear.weight" for x in "tsvad"),
  *(
    f"contra_head_{x}.{leaf}"
    for x in ("va", "id", "vs", "vas")
    for leaf in ("weight", "bias")
  ),
  *(f"{x}_frame_embedding" for x in ("vision", "audio", "depth")),
  *(f"{x}_type_embeddings" for x in ("vision", "audio", "depth", "subtitle")),
)


def original_items(source: Source) -> Iterator[Item] | None:
  """The tensors of the imported file, byte for byte; None: not imported."""
  if "import" not in source.checkpoint.manifest:
    return None
  found = originals.open_tensors(source.checkpoint.folder)
  return (
    Item(name, tensor.shape, tensor.dtype, tensor.load, tensor.sha256)
    for name, tensor in found.items()
  )


def _content(source: Source) -> tuple[list[Item], dict[str, str]]:
  """What the original's file holds: as imported, or by its own names."""
  about = source.checkpoint.manifest.get("import", {})
  if about.get("format") != "mico":
    return items(source)
  return list(original_items(source) or ()), about["tied"]


def write(source: Source, folder: pathlib.Path, report: Report) -> None:
  """Writes the folder, tensor by tensor.

  Raises:
    ConfigError: naming the parameters that the original cannot hold.
  """
  found, ties = _content(source)
  (folder / "ckpt").mkdir(parents=True)
  (folder / "log").mkdir()
  name = f"model_step_{source.checkpoint.step}.pt"
  written = torch_archive.write(folder / "ckpt" / name, found, ties=ties)
  export.write_json(folder / "log" / "hps.json", hps(source.config))
  prefix = "" if report.target == "mico" else f"{folder.name}/"
  report.add("mico", written, f"{prefix}ckpt/")
  report.add_file("mico", folder / "log/hps.json", f"{prefix}log/hps.json")
