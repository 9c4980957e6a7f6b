"""Recognition of foreign weights: library and model, by configs and names.

Weights that cannot be read are refused by the name of their model, with advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mico_jax.interop.files.tensors import Tensors, WeightsError

WRAPPERS = ("module.", "model.", "_orig_mod.")
COMPILED = "_orig_mod."
# model_type of transformers -> the format that reads it, and the prefix of its
# classes' names.
LAYOUTS: Mapping[str, tuple[str, str]] = {
  "bert": ("bert", "Bert"),
  "clip": ("hf", "CLIP"),
  "clip_vision_model": ("hf", "CLIPVision"),
  "siglip": ("hf", "Siglip"),
  "siglip_vision_model": ("hf", "SiglipVision"),
  "dinov2": ("hf", "Dinov2"),
  "dinov2_with_registers": ("hf", "Dinov2WithRegisters"),
  "vit": ("hf", "ViT"),
  "convnextv2": ("hf", "ConvNextV2"),
  "swin": ("hf", "Swin"),
}
# Beginning of a tensor's name, its library or model, the format that reads it.
MARKS: tuple[tuple[str, str, str], ...] = (
  (r"(multimodal_encoder|contra_head_t)\.", "an official MiCo", "mico"),
  (r"visual\.trunk\.", "a timm tower of open_clip", "timm"),
  (r"visual\.layer1\.", "a CLIP of the ResNet kind", ""),
  (r"visual\.(transformer|ln_pre)\b", "OpenAI's CLIP or open_clip", "clip"),
  (r"visual\.blocks\.", "EVA-CLIP", "evaclip"),
  (r"vision_model\.", "CLIP or SigLIP of Hugging Face", "hf"),
  (
    r"(\w+\.)?embeddings\.patch_embeddings\.",
    "a vision model of Hugging Face",
    "hf",
  ),
  (r"(bert\.)?embeddings\.word_embeddings\.", "a BERT", "bert"),
  (r"(\w+)\.embeddings\.word_embeddings\.", "another model than BERT", ""),
  (r"(layers|stages)\.0\.blocks\.|blocks\.0\.attn\.", "timm", "timm"),
  (r"(transformer\.h|layers\.0\.self_attn)\.", "a language model", ""),
)


def without_prefix(name: str) -> str:
  """A name without the prefixes of training wrappers.

  Leading `module.` (DDP), `model.` (Lightning) and `_orig_mod.` (torch.compile)
  are removed in any order and number; `_orig_mod.` anywhere in the name, as a
  part of a model may have been compiled.
  """
  name = name.replace(COMPILED, "")
  while name.startswith(WRAPPERS):
    name = name.partition(".")[2]
  return name


def layout_of(tensors: Tensors) -> tuple[str, str]:
  """Library or model of the names, and the format that reads it; "": none."""
  names = [without_prefix(tensor.name) for tensor in tensors.values()]
  for pattern, what, form in MARKS:
    if any(re.match(pattern, name) for name in names):
      return what, form
  return "", ""


def other_layout(tensors: Tensors) -> str:
  """Advice about weights that are not of the chosen format."""
  what, form = layout_of(tensors)
  if form:
    return f"its names are those of {what}: import it --from {form}."
  if what:
    return f"its names are those of {what}, which cannot be imported."
  return "see --from for other kinds of weights."


def check_layout(settings: Mapping[str, Any], where: str, form: str) -> None:
  """Refuses a config.json of transformers that is of another model.

  Args:
    settings: content of the file; {}: there is none.
    where: its path, for messages.
    form: format that reads the weights.

  Raises:
    WeightsError: naming the layout and what to do.
  """
  kind, classes = settings.get("model_type"), settings.get("architectures")
  known = LAYOUTS.get(kind) if isinstance(kind, str) else None
  classes = classes if isinstance(classes, list) else []
  what = " ".join(map(str, classes))
  if settings.get("quantization_config"):
    raise WeightsError(
      f"{where}: quantised weights (quantization_config); take the repository "
      "of the full weights."
    )
  if kind is not None and known is None:
    raise WeightsError(
      f"{where}: the layout of {what or kind} (model_type {kind!r}), which "
      f"this model cannot hold; read here: {', '.join(LAYOUTS)}. Take weights "
      "of one of these."
    )
  if known is not None and known[0] != form:
    raise WeightsError(
      f"{where}: the layout of {what or kind} (model_type {kind!r}); import it "
      f"--from {known[0]}."
    )
  prefix = known[1] if known else ("Bert" if form == "bert" else "")
  if what and not all(str(one).startswith(prefix) for one in classes):
    raise WeightsError(
      f"{where}: architectures {what}, but model_type {kind!r}; expected names "
      f"that begin with {prefix}. Take weights of that class."
    )
