"""The folder that the official code loads: `ckpt/model_step_N.pt`, `log/`.

Names and layout follow `interop.names.mico`; an imported checkpoint gives back
the tensors that it was imported from, byte for byte.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from mico_jax.aliases import Params
from mico_jax.config import (
  Config,
  ConfigError,
  GenerationConfig,
  ModelConfig,
  VisionConfig,
)
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.files import torch_writer
from mico_jax.interop.files.tensors import Item, item
from mico_jax.interop.importing import mico_folder, source_tensors
from mico_jax.interop.names import mico, weight_map
from mico_jax.modalities import MODALITIES, preprocessing
from mico_jax.modalities.sampling import CHUNK
from mico_jax.models import VISION

# Official name of an encoder -> its config; `SAID`: the fields that it fixes.
ENCODER_TYPES = {
  "evaclip01_giant": VISION["eva01_g14"],
  "evaclip02_large": VISION["eva02_l14"],
  "evaclip02_base": VISION["eva02_b16"],
  "evaclip02_bige": VISION["eva02_bige14_plus"],
}
SAID = ("encoder", "width", "depth", "patch_size", "num_heads", "mlp_dim")
SAID += ("mlp", "norm", "sub_norm", "pre_norm")
BERT_BASE = (768, 12, 12)  # width, layers and heads of its text tower


def encoder_type(vision: VisionConfig) -> str:
  """The official name of an encoder; "": it has none."""
  for name, known in ENCODER_TYPES.items():
    if all(getattr(vision, field) == getattr(known, field) for field in SAID):
      return name
  return ""


def hps(config: Config) -> dict[str, Any]:
  """The content of log/hps.json: the settings that the official code reads.

  Encoders and text towers without an official name are described by
  `tiny_vision` and `tiny_bert`.
  """
  vision, text, model = config.model.vision, config.model.text, config.model
  lengths = config.data.tokenizer.max_length
  kind = encoder_type(vision)
  frames = model.frame_table.get("video", 0)
  # One number is both the length of texts and the limit of captions.
  length, caption = lengths.get("default", 40), config.generation.max_new_tokens
  if length != max(caption, mico_folder.QUERY_LENGTH):
    caption = length
  settings: dict[str, Any] = {
    "model_type": "mico",
    "vision_encoder_type": kind or "evaclip01_giant",
    "audio_encoder_type": "shared_vision",
    "frame_embedding_type": "adaptive" if frames else "none",
    "vision_resolution": vision.image_size,
    "checkpointing": False,
    "frozen_vision": False,
    "frozen_audio": False,
    "itm_ratio": config.objectives.matching.weight,
    "contra_dim": model.embed_dim,
    # Without a frame table, the inputs determine the frames of a video.
    "max_vision_sample_num": frames
    or preprocessing.input_config(config, "video").frames,
    "max_audio_sample_num": max(model.frame_table.get("audio", 1), 1),
    "max_depth_sample_num": max(model.frame_table.get("depth", 1), 1),
    "max_caption_len": caption,
    "max_omni_caption_len": lengths.get("omni", 70),
    "max_subtitle_len": lengths.get("subtitle", 70),
    "beam_size": config.generation.num_beams,
    "captioner_mode": False,
    "generate_nums": 1,
    "pool_video": model.pool_frames,
  }
  if not kind:
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


def items(
  params: Params, config: ModelConfig
) -> tuple[list[Item], dict[str, str]]:
  """Tensors under their official names, and tied copies: copy -> original.

  Args:
    params: nested dict of host arrays.
    config: of the model.

  Raises:
    ConfigError: naming parameters that the official layout lacks, or tensors
      that it has and the model lacks.
  """
  try:
    table = mico.table_of(params, config)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  patch = config.vision.patch_size
  tensors = list(weight_map.items(params, table, patch_size=patch))
  tensors += [item(k, v) for k, v in mico.buffers(config).items()]
  by_name = {one.name: one for one in tensors}
  for copy, original in mico.TIED.items():
    tensors.append(dataclasses.replace(by_name[original], name=copy))
  expected = list(EXPECTED)
  if not config.frame_table.get("video"):  # frame_embedding_type "none"
    expected.remove("vision_frame_embedding")
  missing = [name for name in expected if name not in by_name]
  if missing:
    raise ConfigError(
      "the official code expects tensors that this model lacks: "
      f"{export.summarise(missing)}."
    )
  return tensors, mico.TIED


# Tensors of every official model besides those of the towers.
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


def left_out(source: OpenedCheckpoint) -> list[str]:
  """Paths of an import's parameters that its file did not contain."""
  entries = source.checkpoint.manifest["items"]["params"]
  return [path for path, entry in entries.items() if "original" not in entry]


def original_items(source: OpenedCheckpoint) -> Iterator[Item] | None:
  """The tensors of the imported file, byte for byte; None: no import."""
  if "import" not in source.checkpoint.manifest:
    return None
  tensors = source_tensors.open_tensors(source.checkpoint.folder)
  return (
    Item(name, tensor.shape, tensor.dtype, tensor.load, tensor.sha256)
    for name, tensor in tensors.items()
  )


def _is_original(source: OpenedCheckpoint) -> bool:
  """Whether the checkpoint was imported from an official folder."""
  about = source.checkpoint.manifest.get("import", {})
  return about.get("format") == "mico"


def _content(source: OpenedCheckpoint) -> tuple[list[Item], dict[str, str]]:
  """Tensors of the folder and their ties, imported or renamed."""
  if not _is_original(source):
    return items(source.params, source.config.model)
  ties = source.checkpoint.manifest["import"]["tied"]
  return list(original_items(source) or ()), ties


def check_sampling(config: Config) -> None:
  """Checks that the official code would choose the frames of this model.

  It divides a clip into `max_*_sample_num` equal parts and takes one of each;
  its settings cannot say frames a second, nor consecutive ones.

  Raises:
    ConfigError: naming a modality with another `sampling`.
  """
  table = preprocessing.samplings(config, tuple(MODALITIES)).get("sampling", {})
  for key, how in table.items():
    raise ConfigError(
      f"data.inputs.{key}.sampling={how['sampling']!r}: the official code can "
      f"only take a frame of each of N equal parts ({CHUNK!r}), and would see "
      "others; --to torch writes a folder that samples as this model does."
    )


def other_writing(settings: GenerationConfig) -> list[str]:
  """In what the official code writes captions otherwise than these settings.

  Its settings name the number of beams and the length alone.
  """
  notes = []
  if settings.top_p:
    notes.append(
      f"generation.top_p={settings.top_p}: the official code draws no tokens, "
      "it takes the most probable ones; --to torch writes as this model does"
    )
  elif settings.num_beams > 1:
    penalty = mico_folder.LENGTH_PENALTY
    if settings.length_penalty != penalty:
      notes.append(
        f"generation.length_penalty={settings.length_penalty}: the official "
        f"demo writes with {penalty}; --to torch writes as this model does"
      )
  return notes


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes the folder, tensor by tensor; no option applies.

  Raises:
    ConfigError: naming the parameters that the official layout lacks, or a
      modality whose frames the official code would choose otherwise.
  """
  del options
  check_sampling(source.config)
  tensors, ties = _content(source)
  (folder / "ckpt").mkdir(parents=True)
  (folder / "log").mkdir()
  name = f"model_step_{source.checkpoint.step}.pt"
  written = torch_writer.write(folder / "ckpt" / name, tensors, ties=ties)
  export.write_json(folder / "log" / "hps.json", hps(source.config))
  prefix = "" if report.target == "mico" else f"{folder.name}/"
  report.add("mico", written, f"{prefix}ckpt/")
  report.add_file("mico", folder / "log/hps.json", f"{prefix}log/hps.json")
  report.notes += other_writing(source.config.generation)
  if _is_original(source) and (absent := left_out(source)):
    report.notes.append(
      "the folder for the official code holds only tensors of the imported "
      f"file, not {export.summarise(absent)}; --to torch writes everything"
    )
