"""Case demo_e2e: import an official folder, then score and caption files.

The calls of a user: `import_checkpoint`, `mico_jax.load`, `score` and `caption`
on the media in `../media`; and the steps between them, from the preprocessed
arrays to the scores of the beams.
"""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mico_jax.inference import omni_model
from mico_jax.inference.omni_model import OmniModel
from mico_jax.interop import importer
from mico_jax.interop.files import safetensors_file
from mico_jax.interop.names import mico as official
from mico_jax.models import Context
from mico_jax.models.decoding import Generation, make_generator
from mico_jax.testing.golden.case import (
  Check,
  Folder,
  Missing,
  Unsupported,
  log_mels,
  pixels_of,
)

DEMO_LIMIT = 1e-5  # similarities and matching scores
VOCABULARY = pathlib.Path("wordpiece", "vocab.txt")
# Letter -> modality, and its name in the outputs.
SIDES = {"v": ("image", "image"), "a": ("audio", "audio")}


def demo_e2e(folder: Folder) -> Iterator[Check | Missing]:
  """Every stored number of the demo."""
  if importlib.util.find_spec("torch") is None:
    raise Unsupported("torch, to read model_step_*.pt")
  beside = folder.path.parent
  if not (beside / VOCABULARY).is_file():
    raise Unsupported(f"the vocabulary, in a sibling folder: {VOCABULARY}")
  kind = str(folder.config.get("image_encoder_type_for_normalisation", "swin"))
  pixels = pixels_of(kind)
  if pixels is None:
    raise Unsupported(f"the statistics of pixels for an encoder {kind!r}")
  with tempfile.TemporaryDirectory() as scratch:
    out = pathlib.Path(scratch) / "imported"
    importer.import_checkpoint(
      "mico",
      folder.path / "pretrain_dir",
      out,
      vocabulary=beside / VOCABULARY,
      overrides=[f"data.inputs.image.mode={pixels[1]}"],
      self_check=False,
    )
    model = omni_model.load(out)
  yield from _loaded(folder, model)
  yield from _text(folder, model)
  queries = model.embed(text=folder.config["texts"])["text"]
  for letter, (key, name) in SIDES.items():
    file = beside / "media" / folder.config.get(name, "")
    if file.is_file():
      yield from _side(folder, model, letter, key, str(file), queries)
    else:
      yield Missing(f"sim_t2{letter}", f"the file {file}")


def _loaded(folder: Folder, model: OmniModel) -> Iterator[Check]:
  """The tensors after the loader."""
  params = jax.tree.map(np.asarray, model.params)
  tensors = official.to_official(params, model.config.model)
  stored = folder.path / "loaded_resized.safetensors"
  if stored.is_file():
    for name, want in safetensors_file.read(stored).items():
      yield Check(f"loaded_resized {name}", tensors[name], want, 1e-6)
  state: Mapping[str, Any] = folder.config.get("loaded_state", {})
  names = [name for name in state if name in tensors]
  absent = [name for name in state if name not in tensors]
  yield Check("loaded_state, absent names", np.array(absent), np.array([]), 0.0)
  shapes = [
    name for name in names if list(tensors[name].shape) != state[name]["shape"]
  ]
  yield Check("loaded_state, other shapes", np.array(shapes), np.array([]), 0.0)
  scale = np.array([max(state[n]["abs_sum"], 1.0) for n in names])
  for kind, total in (("sum", np.sum), ("abs_sum", lambda x: np.abs(x).sum())):
    got = np.array([total(tensors[n].astype(np.float64)) for n in names])
    want = np.array([state[n][kind] for n in names])
    yield Check(f"loaded_state, {kind}", got / scale, want / scale, 1e-6)


def _text(folder: Folder, model: OmniModel) -> Iterator[Check]:
  """Token ids and features of the texts."""
  outputs, texts = folder.outputs, folder.config["texts"]
  length = outputs["input_ids"].shape[1]
  ids = np.stack([model.tokenizer.encode(text, length) for text in texts])
  yield Check("input_ids", ids, outputs["input_ids"], 0.0)
  mask = ids != model.tokenizer.info.pad
  yield Check("attention_mask", mask, outputs["attention_mask"], 0.0)
  got = model.embed(text=texts)["text"]
  yield Check("feat_t", got, outputs["feat_t"], DEMO_LIMIT)


def _side(
  folder: Folder,
  model: OmniModel,
  letter: str,
  key: str,
  file: str,
  queries: Float[np.ndarray, "Q E"],
) -> Iterator[Check]:
  """Everything of the image or of the sound."""
  outputs, texts = folder.outputs, folder.config["texts"]
  host = model.preparer.prepare_one(key, file)[None]
  pixels = model.preparer.mode(key).to_pixels(
    host, geometry=model.preparer.geometry(key), xp=np
  )
  tokens = model.model.encode(model.params, key, jnp.asarray(pixels))
  context = model.model.context(model.params, letter, {letter: tokens})
  inputs: dict[str, Any] = {key: [file]}
  feature = model.embed(**inputs)[key]
  scores = model.score(texts, [file])
  similarity = f"sim_t2{letter}"
  got = {
    f"feat_{letter}": feature,
    similarity: queries @ feature.T,
  }
  if letter == "v":
    frames = np.moveaxis(pixels, -1, 2)
    yield Check("image_input", frames, outputs["image_input"], 1e-4)
    yield Check("vision_output", tokens, outputs["vision_output"])
    yield Check("video_input", context.values, outputs["video_input"])
    got["slice_scores"] = scores.matching[0]
  else:
    scale = 2 * model.config.data.audio.std
    want = outputs["audio_input"]
    yield from log_mels("audio_input", pixels[..., 0], want, scale)
  for name, value in got.items():
    yield Check(name, value, outputs[name], DEMO_LIMIT)
  yield Check(
    f"{similarity} (score)", scores.similarity.T, outputs[similarity], 1e-5
  )
  yield from _caption(folder, model, key, file, context)


def _caption(
  folder: Folder, model: OmniModel, key: str, file: str, context: Context
) -> Iterator[Check]:
  """Ids, score and text of the caption."""
  settings, outputs = folder.config, folder.outputs
  write = make_generator(
    model.model,
    tokens=model.tokenizer.info,
    max_new_tokens=settings["max_new_tokens"],
    num_beams=settings["num_beams"],
    length_penalty=settings["length_penalty"],
  )
  caption: Generation = write(
    model.params, model.model.project_context(model.params, context)
  )
  want = outputs[f"caption_ids.{key}"]
  ids = np.asarray(caption.sequences)[:, 0]
  if (ids[:, want.shape[1] :] == model.tokenizer.info.pad).all():
    ids = ids[:, : want.shape[1]]
  yield Check(f"caption_ids.{key}", ids, want, 0.0)
  score = np.asarray(caption.scores).reshape(-1)
  yield Check(f"caption_score.{key}", score, outputs[f"caption_score.{key}"])
  inputs: dict[str, Any] = {key: [file]}
  text = model.caption(
    max_new_tokens=settings["max_new_tokens"],
    num_beams=settings["num_beams"],
    length_penalty=settings["length_penalty"],
    **inputs,
  )
  texts = np.array(settings["captions"][key])
  yield Check(f"caption.{key}", np.array(text), texts, 0.0)
