"""The PyTorch folder: the model in one file, weights, tokenizer, decoders.

Writing needs no PyTorch; comparing outputs does. The Python file is an
unchanged copy of `torch_template/modeling_mico.py`; `config.json` and
`preprocessing.json` describe the model. Raw inputs are decoded by copies of
this package's own files (`torch_inputs`); a custom embedding of a modality is a
copy of the file that its record names (`torch_embeddings`).
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import pathlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mico_jax import config as config_lib
from mico_jax.checkpoint import selfcheck
from mico_jax.config import Config, ConfigError, ModelConfig
from mico_jax.data.tokenizer import META_FILE, Tokenizer
from mico_jax.inference.prepare import Preparer, trained_contexts
from mico_jax.inference.self_check import (
  CAPTION_TOKENS,
  LOGITS,
  VARIANTS,
  SelfCheck,
)
from mico_jax.interop.exporting import export, torch_embeddings, torch_inputs
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.importing.exported import FORMAT
from mico_jax.interop.names import torch_modules
from mico_jax.modalities import (
  MODALITIES,
  CustomEmbedding,
  as_configured,
  preprocessing,
)
from mico_jax.models import build, parameters

if TYPE_CHECKING:
  import torch

# Of a class in a folder's copy of `MODULE`, whose types no module has.
_Module = Any
MODULE = "modeling_mico.py"
SENTENCE_MODULE = "sentence_mico.py"  # for sentence-transformers
# Encoders and text towers of `MODULE`.
ENCODERS = ("vit", "swin", "convnext", "unireplknet")
TEXT_ENCODERS = ("bert", "causal")


def _modalities(config: Config, preparer: Preparer) -> dict[str, Any]:
  """config.json's entries of the modalities that have parameters."""
  model = config.model
  contexts = parameters.context_types(model)
  has_class_token = build(model).has_class_token
  table: dict[str, dict[str, Any]] = {}
  for key, m in MODALITIES.items():
    read = as_configured(m, model)
    context, head = read.context_type, read.head
    if m.kind == "knowledge" and context not in contexts:
      continue
    pooling = m.pooling
    if pooling == "cls" and not has_class_token:
      pooling = "mean"
    table[key] = {
      "letter": m.letter,
      "kind": m.kind,
      "head": head,
      "plays": m.head,
      "context": context,
      "pooling": pooling,
    }
    if m.kind == "interface":
      table[key]["max_length"] = preparer.max_length(key)
    elif isinstance(m.embedding, CustomEmbedding):
      table[key]["tokens"] = torch_embeddings.described(m.embedding)
  return table


def model_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
  """The content of config.json."""
  model = config.model
  preparer = Preparer(config, tokenizer)
  info = tokenizer.info
  groups = (*trained_contexts(config), *model.heads)
  return {
    "format": FORMAT,
    "name": config.name,
    "model": config_lib.to_dict(model),
    "modalities": _modalities(config, preparer),
    "class_token": build(model).has_class_token,
    "encoder_width": model.vision.width,
    "contexts": {
      name: model.frame_table.get(name, 0)
      for name in parameters.context_types(model)
    },
    "weighted": parameters.weighted_types(model),
    "heads": {
      head: sum(parameters.feature_width(model, letter) for letter in head)
      for head in parameters.head_names(model)
    },
    # A context takes the order of the first group with its modalities.
    "groups": list(dict.fromkeys(group for group in groups if group)),
    "generation": {
      **config_lib.to_dict(config.generation),
      "most_beams": config_lib.MAX_BEAMS,
    },
    "tokenizer": {
      "kind": getattr(tokenizer, "kind", ""),
      **getattr(tokenizer, "settings", {}),
      "pad": info.pad,
      "cls": info.cls,
      "sep": info.sep,
      "mask": info.mask,
      "vocab_size": info.vocab_size,
    },
  }


def preprocessing_json(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
  """The content of preprocessing.json: the evaluation modes of the inputs."""
  preparer = Preparer(config, tokenizer)
  inputs = {}
  for key in _modalities(config, preparer):
    if MODALITIES[key].kind == "interface":
      continue
    mode = preparer.mode(key)
    inputs[key] = {
      "mode": mode.name,
      **mode.recipe,  # the mode as data, where it has such a form
      "frames": preprocessing.input_config(config, key).frames,
    }
    if mode.unit:
      inputs[key]["unit"] = mode.unit
    if channels := preparer.geometry(key).channels:
      inputs[key]["channels"] = list(channels)
    if columns := config.data.columns.get(key):
      inputs[key]["columns"] = columns
    how = preprocessing.samplings(config, (key,))
    inputs[key].update(how.get("sampling", {}).get(key, {}))
  return {
    "image_size": config.model.vision.image_size,
    "max_pixels": config.data.max_pixels,
    "audio": config_lib.to_dict(config.data.audio),
    "inputs": inputs,
  }


def template(name: str = MODULE) -> str:
  """The text of a Python file of the folder."""
  folder = importlib.resources.files("mico_jax.interop") / "torch_template"
  return (folder / name).read_text()


def write_code(folder: pathlib.Path) -> list[str]:
  """Writes the Python files; returns their names."""
  for name in (MODULE, SENTENCE_MODULE):
    (folder / name).write_text(template(name))
  decoders = torch_inputs.files()
  export.write_files(
    folder / torch_inputs.PACKAGE,
    {name: text.encode() for name, text in decoders.items()},
  )
  inputs = [f"{torch_inputs.PACKAGE}/{name}" for name in decoders]
  return [MODULE, SENTENCE_MODULE, *inputs]


def _write_sentence_transformers(folder: pathlib.Path) -> list[str]:
  """Writes what `SentenceTransformer(folder)` looks for; returns the names."""
  module = f"{SENTENCE_MODULE.removesuffix('.py')}.MiCoModule"
  contents: dict[str, Any] = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module}],
    "config_sentence_transformers.json": {
      "model_type": "SentenceTransformer",
      "prompts": {},
      "default_prompt_name": None,
      "similarity_fn_name": "cosine",
    },
  }
  for name, content in contents.items():
    export.write_json(folder / name, content)
  return list(contents)


def _check_classes(model: ModelConfig) -> None:
  """Refuses encoders and text towers that `MODULE` does not have."""
  for field, name, known in (
    ("vision", model.vision.encoder, ENCODERS),
    ("text", model.text.encoder, TEXT_ENCODERS),
  ):
    if name not in known:
      raise ConfigError(
        f"model.{field}.encoder={name!r} has no PyTorch form, only "
        f"{', '.join(known)} have; export to safetensors or stablehlo instead."
      )


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes the self-contained PyTorch folder.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export.

  Raises:
    ConfigError: naming an encoder, text tower or embedding that has no PyTorch
      form.
  """
  _check_classes(source.config.model)
  embeddings = torch_embeddings.files(source.config.model)
  names = [*write_code(folder), *_write_sentence_transformers(folder)]
  names += embeddings
  names += ["config.json", "preprocessing.json"]
  export.write_files(folder, {k: v.encode() for k, v in embeddings.items()})
  config = model_config(source.config, source.tokenizer)
  export.write_json(folder / "config.json", config)
  export.write_json(
    folder / "preprocessing.json",
    preprocessing_json(source.config, source.tokenizer),
  )
  files = source.tokenizer.files()
  export.write_files(folder / "tokenizer", files)
  items = torch_modules.items(source.params, source.model)
  export.write_tensors(report, "modeling", folder, items, options)
  names += [f"tokenizer/{name}" for name in files if name != META_FILE]
  for name in names:
    report.add_file("modeling", folder / name, name)


def load_module(folder: pathlib.Path) -> ModuleType:
  """The exported Python file as a module of its own.

  Raises:
    ImportError: without PyTorch.
  """
  name = f"modeling_mico_{abs(hash(str(folder)))}"
  spec = importlib.util.spec_from_file_location(name, folder / MODULE)
  if spec is None or spec.loader is None:
    raise ImportError(f"{folder / MODULE} cannot be imported.")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def outputs(
  model: _Module,
  source: OpenedCheckpoint,
  inputs: Mapping[str, Any],
  *,
  raw: bool = False,
) -> dict[str, np.ndarray]:
  """The self-check's outputs, computed by the exported model.

  Args:
    model: `MiCo` of the exported file, on any device.
    source: the exported checkpoint.
    inputs: raw inputs of the self-check.
    raw: whether the exported folder preprocesses them too, where it can.
  """
  import torch

  check = SelfCheck(source.config, source.tokenizer)
  ids = model.tokens("text", [selfcheck.array_text(inputs["text"])])
  with torch.no_grad():
    tensors, tokens, masks = _embeddings(model, check, inputs, raw)
    pooled = {"t": model.pool_text(model.encode_text(ids), ids)}
    tensors["ids/text"] = ids[0]
    tensors["embed/text"] = model.features("t", pooled)[0]
    if check.letters:
      context = model.context(check.letters, tokens, masks)
      ids = ids.repeat(len(VARIANTS), 1)
      hidden = model.encode_text(ids, context=context)
      logits = model.matching_logits(hidden, ids)
      tensors[LOGITS] = logits
      tensors["matching"] = logits.softmax(-1)[:, 1]
      tensors["caption"] = _caption(model, context, source.tokenizer)
  return {
    f"{selfcheck.OUTPUT}{name}": tensor.cpu().numpy()
    for name, tensor in tensors.items()
  }


def _embeddings(
  model: _Module,
  check: SelfCheck,
  inputs: Mapping[str, Any],
  raw: bool,
) -> tuple[dict[str, torch.Tensor], ...]:
  """Embeddings by name of the output; tokens and their masks by letter."""
  import torch

  embeddings, pooled, tokens, masks = {}, {}, {}, {}
  heads = {head: head for head in check.heads}
  for key in check.preparer.keys:
    if MODALITIES[key].kind == "interface":
      continue
    rows = [np.array(inputs[f"{key}/{v}"]) for v in VARIANTS]
    if raw and model.reader.has(key):
      pixels = model.pixels(key, rows)
    else:
      pixels = torch.as_tensor(_prepared(check.preparer, key, rows))
      pixels = pixels.to(model.device)
    letter = MODALITIES[key].letter
    valid = model.valid_tokens(key, pixels)
    tokens[letter] = model.encode(key, pixels)
    pooled[letter] = model.pool(key, tokens[letter], valid)
    if valid is not None:
      masks[letter] = valid
    heads[key] = letter
  for name, head in heads.items():
    values = model.features(head, pooled)
    for variant, row in zip(VARIANTS, values, strict=True):
      embeddings[f"embed/{name}/{variant}"] = row
  return embeddings, tokens, masks


def _caption(
  model: _Module,
  context: _Module,
  tokenizer: Tokenizer,
) -> torch.Tensor:
  """The first tokens of greedy captions, by full passes without a cache."""
  import torch

  info, rows = tokenizer.info, len(VARIANTS)
  ids = torch.full((rows, 1), info.cls, device=model.device)
  masks = torch.full_like(ids, info.mask)
  for _ in range(CAPTION_TOKENS):
    asked = ids if model.text.next_token else torch.cat([ids, masks], 1)
    hidden = model.encode_text(
      asked,
      attention="causal",
      mask=torch.ones_like(asked, dtype=torch.bool),
      context=context,
    )
    best = model.lm_logits(hidden[:, -1:]).argmax(-1)
    ids = torch.cat([ids, best], 1)
  return ids[:, 1:]


def _prepared(
  preparer: Preparer, key: str, raw: Sequence[Any]
) -> Float[np.ndarray, "B T ..."]:
  """Preprocessed inputs [B, *record.spec], by our own evaluation mode."""
  rows = np.stack([preparer.prepare_one(key, x) for x in raw])
  geometry = preparer.geometry(key)
  pixels = preparer.mode(key).to_pixels(rows, geometry=geometry, xp=np)
  return np.array(pixels)  # PyTorch wants it writable


def compare(source: OpenedCheckpoint, folder: pathlib.Path) -> dict[str, float]:
  """Runs the exported file on the self-check inputs.

  Returns:
    Largest absolute difference of each output, of token ids and matching
    logits too: on the same prepared arrays, and ("raw/...") with the exported
    folder's own preprocessing.

  Raises:
    ImportError: without PyTorch.
  """
  model = load_module(folder).MiCo.from_folder(folder)
  inputs = selfcheck.inputs(source.self_check())
  # Matching probabilities may be saturated, so its logits are compared too.
  check = SelfCheck(source.config, source.tokenizer)
  stored = check.outputs(source.params, inputs, logits=True)
  compared = {}
  for prefix, raw in (("", False), (export.RAW, True)):
    got = outputs(model, source, inputs, raw=raw)
    gaps = export.differences(stored, got)
    if raw:  # Logits amplify differences of the preprocessing without bound.
      gaps.pop(LOGITS, None)
    compared |= {prefix + name: gap for name, gap in gaps.items()}
  return compared
