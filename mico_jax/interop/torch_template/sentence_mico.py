"""The exported model as a module of sentence-transformers.

    model = SentenceTransformer(folder, trust_remote_code=True)
    model.encode(["a dog barks", "photo.jpg", Image.open("b.png")])
    model.encode([{"video": "c.mp4", "audio": "c.wav"}])  # a joint head

Inputs, one at a time or mixed in a list:

- a text; the path of a file with the extension of a modality is that file;
- a Pillow image; a list of them, frames of a video;
- an array of bytes [Y, X, 3] or [T, Y, X, 3]: an image, a video;
- {"array": samples, "sampling_rate": Hz}: a sound, [N] or [channels, N];
- {"array": frames, "video_metadata": ...}: a video [T, Y, X, 3];
- {modality: input}, for every modality of the model, with several of them for a
  joint head; depth maps name their unit: {"depth": "mm:d.png"}.

An array without a rate, a URL and anything else is refused. Embeddings have
unit norm. Gradients flow through `forward`, so the trainers work.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers.models import InputModule
from sentence_transformers.util import load_dir_path
from torch import Tensor

FILE = "modeling_mico.py"
Parts = dict[str, Any]  # modality -> raw input


def _modeling(folder: pathlib.Path) -> Any:
  """The module beside the weights, which finds the decoders beside itself."""
  name = f"modeling_mico_{abs(hash(folder))}"
  if name not in sys.modules:
    spec = importlib.util.spec_from_file_location(name, folder / FILE)
    if spec is None or spec.loader is None or not (folder / FILE).is_file():
      raise ImportError(f"{folder / FILE} is missing; copy the whole folder.")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
  return sys.modules[name]


class MiCoModule(InputModule):
  """Reads raw inputs of any modality and embeds them."""

  def __init__(self, folder: str):
    """Loads an exported folder."""
    super().__init__()
    self.folder = pathlib.Path(folder).resolve()
    self.modeling = _modeling(self.folder)
    self.model = self.modeling.MiCo.from_folder(self.folder)

  @classmethod
  def load(
    cls,
    model_name_or_path: str,
    subfolder: str = "",
    token: bool | str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    init_defaults: dict[str, Any] | None = None,
    **kwargs: Any,
  ) -> MiCoModule:
    """Loads from a local folder or a repository of the hub."""
    del init_defaults, kwargs
    place = load_dir_path(
      model_name_or_path,
      subfolder=subfolder,
      token=token,
      cache_folder=cache_folder,
      revision=revision,
      local_files_only=local_files_only,
    )
    return cls(place or model_name_or_path)

  def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
    """Writes the folder with the present weights."""
    del args, kwargs
    out = pathlib.Path(output_path).resolve()
    weights = self.modeling.WEIGHTS
    if out != self.folder:
      skip = shutil.ignore_patterns("*.safetensors*", "mico", "__pycache__")
      shutil.copytree(self.folder, out, ignore=skip, dirs_exist_ok=True)
    for old in out.glob("*.safetensors*"):
      old.unlink()
    tensors = {
      name: value.detach().cpu().contiguous()
      for name, value in self.model.state_dict().items()
    }
    save_file(tensors, out / weights)

  @property
  def modalities(self) -> list[Any]:
    """The keys that inputs may have, and the groups with a joint head."""
    modalities, heads = self.model.modalities, self.model.config["heads"]
    single = [k for k, m in modalities.items() if m["head"] in heads]
    joint = [
      tuple(self.model.by_letter[letter] for letter in head)
      for head in heads
      if len(head) > 1
    ]
    # The library hands over lists of mixed inputs only to models that it
    # believes to read messages; those of a chat are refused by `parts`.
    return [*single, *joint, "message"]

  def get_embedding_dimension(self) -> int:
    """Size of the joint space."""
    return self.model.options["embed_dim"]

  def get_sentence_embedding_dimension(self) -> int:
    """Size of the joint space."""
    return self.get_embedding_dimension()

  # ------------------------------------------------------------------- inputs
  def preprocess(
    self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
  ) -> dict[str, Any]:
    """Decodes a list of inputs.

    Returns:
      "groups": of each combination of modalities its rows and tensors.

    Raises:
      ValueError: for an input that the model does not take.
    """
    del kwargs
    groups: dict[tuple[str, ...], list[tuple[int, Parts]]] = {}
    for row, value in enumerate(inputs):
      parts = self.parts(value)
      text = parts.get("text")
      if prompt and isinstance(text, str):
        parts["text"] = prompt + text
      groups.setdefault(tuple(sorted(parts)), []).append((row, parts))
    return {"groups": [self._prepare(k, rows) for k, rows in groups.items()]}

  def _prepare(
    self, keys: Sequence[str], rows: Sequence[tuple[int, Parts]]
  ) -> dict[str, Any]:
    columns = {key: [parts[key] for _, parts in rows] for key in keys}
    return {
      "letters": self._letters(keys),
      "rows": [row for row, _ in rows],
      "inputs": self.model.prepare(self.model.lists(columns)),
    }

  def _letters(self, keys: Sequence[str]) -> str:
    """The head of a combination of modalities."""
    modalities = self.model.modalities
    letters = {modalities[key]["letter"] for key in keys}
    heads = self.model.config["heads"]
    if len(keys) == 1:
      return letters.pop()
    for head in heads:
      if set(head) in (letters, {modalities[key]["head"] for key in keys}):
        return head
    joint = [head for head in heads if len(head) > 1]
    raise ValueError(
      f"{' + '.join(keys)} have no joint head; the model has those of "
      f"{', '.join(joint) or 'no'} letters."
    )

  def parts(self, value: Any) -> Parts:
    """An input as {modality: raw input}."""
    if isinstance(value, (str, os.PathLike)):
      return self._named(os.fspath(value))
    if isinstance(value, Mapping):
      return self._mapping(value)
    if hasattr(value, "__array__") and hasattr(value, "ndim"):
      return self._array(value)
    if isinstance(value, (list, tuple)) and all(map(_is_picture, value)):
      return {"video": list(value)}
    if _is_picture(value):
      return {"image": value}
    raise ValueError(
      f"cannot embed a {type(value).__name__}; expected a text, path, Pillow "
      "image, array of bytes or {modality: input}."
    )

  def _named(self, text: str) -> Parts:
    """A text, or the file that it names."""
    if text.startswith(("http://", "https://", "data:")) and " " not in text:
      raise ValueError(
        f"{text[:60]!r} is a URL; download it and give its path."
      )
    table = self.modeling.input_package().MODALITIES
    suffix = pathlib.PurePath(text).suffix.lower() if len(text) < 4096 else ""
    for key, modality in table.items():
      if suffix in modality.extensions and os.path.isfile(text):
        return {key: text}
    return {"text": text}

  def _mapping(self, value: Mapping[str, Any]) -> Parts:
    """{modality: input}, or a sound or video as other libraries write it."""
    if "array" in value:
      if "sampling_rate" in value:
        return {"audio": (value["array"], value["sampling_rate"])}
      if "video_metadata" in value:
        return {"video": value["array"]}
      raise ValueError(
        '{"array": ...} needs "sampling_rate" in Hz for a sound.'
      )
    unknown = [key for key in value if key not in self.model.modalities]
    if unknown or not value:
      raise ValueError(
        f"the model takes {', '.join(self.model.modalities)}; got "
        f"{', '.join(map(str, unknown)) or 'nothing'}."
      )
    # A sound or video may be wrapped again.
    unwrap = lambda key, x: (
      self._mapping(x).get(key, x) if isinstance(x, Mapping) else x
    )
    return {key: unwrap(key, x) for key, x in value.items()}

  def _array(self, value: Any) -> Parts:
    """An image or a video of bytes."""
    shape, kind = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    if kind == "uint8" and shape[-1:] == (3,) and len(shape) in (3, 4):
      return {"image" if len(shape) == 3 else "video": value}
    raise ValueError(
      f"an array {kind} {list(shape)} is none of uint8 [Y, X, 3] (image) and "
      '[T, Y, X, 3] (video); give a sound as {"array": samples, '
      '"sampling_rate": Hz} and others as {modality: array}.'
    )

  # ------------------------------------------------------------------ forward
  def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Adds "sentence_embedding" [B, E] of unit norm."""
    del kwargs
    rows: list[int] = []
    embeddings: list[Tensor] = []
    for group in features["groups"]:
      device = self.model.device
      inputs = {key: x.to(device) for key, x in group["inputs"].items()}
      _, pooled, _ = self.model.encode_all(inputs)
      embeddings.append(self.model.features(group["letters"], pooled))
      rows += group["rows"]
    order = torch.tensor(rows, device=self.model.device).argsort()
    features["sentence_embedding"] = torch.cat(embeddings)[order]
    return features


def _is_picture(value: Any) -> bool:
  """Whether it is a Pillow image."""
  return hasattr(value, "getexif") and hasattr(value, "convert")
