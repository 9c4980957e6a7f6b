"""Reading official MiCo folders: `ckpt/model_step_*.pt` and `log/hps.json`.

As in the loader of the official code, the file of the highest step is read, old
names are rewritten, position and frame tables are resized to hps.json. Other
sizes are those of the tensors, and hps.json must not contradict them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mico_jax.config import (
  AudioConfig,
  Config,
  DataConfig,
  GenerationConfig,
  InputConfig,
  MatchingConfig,
  ModelConfig,
  ObjectivesConfig,
  TokenizerConfig,
)
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import (
  MALFORMED,
  Tensors,
  WeightsError,
  renamed,
)
from mico_jax.interop.importing import vocabulary
from mico_jax.interop.importing.recognise import without_prefix
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.importing.towers import heads_guess
from mico_jax.interop.names import mico as official

STEP = re.compile(r"model_step_(\d+)\.(pt|safetensors)$")
# vision_encoder_type -> width, depth, and fields that no tensor determines.
ENCODERS: Mapping[str, tuple[int, int, Mapping[str, Any]]] = {
  "evaclip01_giant": (1408, 40, {}),
  "evaclip02_base": (768, 12, {}),
  "evaclip02_large": (1024, 24, {}),
  "evaclip02_bige": (1792, 64, {"norm": "post"}),
}
IGNORED: Mapping[str, str] = {
  **dict.fromkeys(official.IGNORED, "the model does not use it"),
  r"\.rope\.freqs_(cos|sin)$": "buffer, computed here",
}
BERT_WIDTH = 768  # of BERT-base, whose 12 heads are known
QUERY_LENGTH = 30  # tokens of a text in the demo of the official code
BEAMS, LENGTH_PENALTY = 3, 0.6  # of captions in that demo


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads an official folder.

  Args:
    path: the folder that holds `ckpt/` and `log/`.

  Raises:
    WeightsError: naming what is missing or contradictory.
  """
  file, settings = _weights_file(path), _settings(path)
  tensors = renamed(
    open_tensors(file), lambda name: official.rename(without_prefix(name))
  )
  config = config_of(tensors, settings, name=path.name, file=file)
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=config,
    guesses=_guesses(config.model, settings),
    ignored=IGNORED,
    ties=official.TIED,
    vocabulary=vocabulary.find(path, text=True),
    hint="Is hps.json that of these weights?",
  )


def _guesses(model: ModelConfig, settings: Mapping[str, Any]) -> dict[str, str]:
  """Numbers of heads that neither hps.json nor the encoder's name determine."""
  guesses: dict[str, str] = {}
  stated = settings.get("tiny_vision") or (
    settings.get("vision_encoder_type") in ENCODERS
  )
  if not stated:
    guesses |= heads_guess(model.vision)
  stated = (settings.get("tiny_bert") or {}).get("num_attention_heads")
  if not stated and model.text.width != BERT_WIDTH:
    guesses["model.text.num_heads"] = (
      "hps.json states no num_attention_heads: taken to be "
      f"{model.text.num_heads}, 64 wide each"
    )
  return guesses


def config_of(
  tensors: Tensors,
  settings: Mapping[str, Any],
  *,
  name: str,
  file: pathlib.Path,
) -> Config:
  """The config of an official model.

  Args:
    tensors: by official name; only buffers of rotary positions are loaded.
    settings: `model_cfg` of its hps.json.
    name: of the run.
    file: of the tensors, for errors.

  Raises:
    WeightsError: naming what is missing or contradictory.
  """
  config = _model_config(tensors, settings)
  config = _resized(config, settings, file)
  _check(config, settings)
  return _run_config(name, config, settings)


def _weights_file(path: pathlib.Path) -> pathlib.Path:
  folder = path / "ckpt"
  if not folder.is_dir():
    raise WeightsError(
      f"{path}: no folder ckpt/; expected an official folder with "
      "ckpt/model_step_*.pt and log/hps.json."
    )
  by_step = {
    int(match.group(1)): file
    for file in folder.iterdir()
    if (match := STEP.match(file.name))
  }
  if not by_step:
    raise WeightsError(f"{folder}: no model_step_*.pt.")
  return by_step[max(by_step)]


def _settings(path: pathlib.Path) -> Mapping[str, Any]:
  """`model_cfg` of log/hps.json."""
  file = path / "log" / "hps.json"
  if not file.is_file():
    raise WeightsError(
      f"{file}: no such file; it holds the sizes of the position and frame "
      "tables. Copy it from where the weights come from."
    )
  try:
    settings = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
    ENCODERS.get(settings.get("vision_encoder_type"))
    for key in ("tiny_vision", "tiny_bert"):
      (settings.get(key) or {}).keys()
  except MALFORMED as error:
    raise WeightsError(
      f"{file}: not the settings of a MiCo run ({type(error).__name__}: "
      f"{error}); expected JSON with an object model_cfg."
    ) from error
  return settings


def _number(settings: Mapping[str, Any], key: str) -> int | None:
  value = settings.get(key)
  if value is None:
    return None
  if type(value) is not int or not 0 < value < 1_000_000:
    raise WeightsError(
      f"hps.json: {key}={value!r}, expected a positive whole number."
    )
  return value


def _objectives(settings: Mapping[str, Any]) -> ObjectivesConfig:
  """Objectives with the official weight of the matching loss (itm_ratio)."""
  weight = settings.get("itm_ratio")
  if weight is None:
    return ObjectivesConfig()
  if type(weight) not in (int, float) or not 0 <= weight < math.inf:
    raise WeightsError(
      f"hps.json: itm_ratio={weight!r}, expected a number from 0."
    )
  return ObjectivesConfig(matching=MatchingConfig(weight=float(weight)))


def _model_config(tensors: Tensors, settings: Mapping[str, Any]) -> ModelConfig:
  """The model config, of the sizes in the file."""
  kind = settings.get("vision_encoder_type", "")
  tiny = settings.get("tiny_vision") or {}
  options = dict(ENCODERS.get(kind, (0, 0, {}))[2])
  heads = None
  if tiny:
    width, head = (_number(tiny, key) for key in ("width", "head_width"))
    rate = tiny.get("drop_path_rate", 0.0)
    if width is None or head is None or width % head:
      raise WeightsError(
        f"hps.json: tiny_vision has width={width} and head_width={head}; "
        "expected whole numbers, the second a divisor of the first."
      )
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
      raise WeightsError(
        f"hps.json: tiny_vision has drop_path_rate={rate!r}; expected a number "
        "from 0 to 1."
      )
    heads = width // head
    options["drop_path_rate"] = float(rate)
    if tiny.get("postnorm"):
      options["norm"] = "post"
  try:
    config = official.config_from_official(
      tensors,
      vision_heads=heads,
      text_heads=_number(
        settings.get("tiny_bert") or {}, "num_attention_heads"
      ),
    )
  except (LookupError, ValueError, ArithmeticError) as error:
    raise WeightsError(
      f"the weights are no MiCo: {error} is missing or of another form; see "
      "--from for other kinds of weights."
    ) from error
  vision = dataclasses.replace(config.vision, **options)
  if not config.heads:
    raise WeightsError(
      "the weights hold no contrastive head (contra_head_*), so they are no "
      "MiCo; see --from for other kinds of weights."
    )
  return dataclasses.replace(config, vision=vision, matmul_precision="highest")


def _resized(
  config: ModelConfig, settings: Mapping[str, Any], file: pathlib.Path
) -> ModelConfig:
  """The config with the table sizes of hps.json."""
  size = _number(settings, "vision_resolution") or config.vision.image_size
  if size % config.vision.patch_size:
    raise WeightsError(
      f"hps.json: vision_resolution={size} is no multiple of the weights' "
      f"patch size {config.vision.patch_size} ({file})."
    )
  frames = dict(config.frame_table)
  for key, word in official.WORDS.items():
    wanted = _number(settings, f"max_{word}_sample_num")
    if key not in frames or wanted is None:
      continue
    if key == "depth" and wanted != frames[key]:
      raise WeightsError(
        f"hps.json: max_depth_sample_num={wanted}, but the weights have a "
        f"depth_frame_embedding of {frames[key]}; the original never resizes "
        "it. Correct hps.json."
      )
    frames[key] = wanted
  if settings.get("frame_embedding_type", "adaptive") == "none":
    frames["video"] = 0
  return dataclasses.replace(
    config,
    vision=dataclasses.replace(config.vision, image_size=size),
    frame_table=frames,
    pool_frames=bool(settings.get("pool_video", False)),
  )


def _check(config: ModelConfig, settings: Mapping[str, Any]) -> None:
  """Compares the sizes in hps.json with those of the weights."""
  kind = settings.get("vision_encoder_type", "")
  tiny = settings.get("tiny_vision") or {}
  bert = settings.get("tiny_bert") or {}
  width, depth, _ = ENCODERS.get(kind, (0, 0, {}))
  vision, text = config.vision, config.text
  for name, stated, have in (
    (f"{kind} has width", tiny.get("width", width), vision.width),
    (f"{kind} has layers", tiny.get("layers", depth), vision.depth),
    ("patch_size", tiny.get("patch_size"), vision.patch_size),
    ("contra_dim", settings.get("contra_dim"), config.embed_dim),
    ("vocab_size", bert.get("vocab_size"), text.vocab_size),
    ("hidden_size", bert.get("hidden_size"), text.width),
    ("num_hidden_layers", bert.get("num_hidden_layers"), text.depth),
  ):
    if stated and stated != have:
      raise WeightsError(
        f"hps.json and weights contradict: {name} {stated}, the weights have "
        f"{have}. Take the hps.json of these weights."
      )


def _run_config(
  name: str, model: ModelConfig, settings: Mapping[str, Any]
) -> Config:
  """The config, with preprocessing and captions of the official demo."""
  frames = model.frame_table
  depth = max(frames.get("depth", 1), 1)
  modes = {
    "image": InputConfig(1, "mico_demo"),
    "video": InputConfig(
      _number(settings, "max_vision_sample_num") or 4, "mico_demo"
    ),
    "audio": InputConfig(max(frames.get("audio", 1), 1), "mico_demo"),
    "depth": InputConfig(depth, "relative_mico_demo"),
    "normal": InputConfig(depth, "mico_demo"),
  }
  caption = _number(settings, "max_caption_len") or 40
  omni = _number(settings, "max_omni_caption_len") or 70
  return Config(
    name=name or "mico",
    model=model,
    data=DataConfig(
      inputs=modes,
      audio=AudioConfig(),
      tokenizer=TokenizerConfig(
        max_length={
          "default": max(caption, QUERY_LENGTH),
          "omni": max(omni, QUERY_LENGTH),
          "subtitle": _number(settings, "max_subtitle_len") or 70,
          "question": 30,
          "answer": 10,
        }
      ),
    ),
    objectives=_objectives(settings),
    generation=GenerationConfig(
      num_beams=_number(settings, "beam_size") or BEAMS,
      length_penalty=LENGTH_PENALTY,
      max_new_tokens=caption,
    ),
  )
