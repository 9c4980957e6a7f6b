r"""Exported folders as models of CLIP_benchmark: pictures and texts.

    mico-jax export --to torch --checkpoint runs/demo --out exported/
    python -m mico_jax.harnesses.clip_benchmark_model eval --model_type mico \
      --model exported --pretrained exported/ --dataset imagenet1k ...

All that follows the module's name is the command line of `clip_benchmark`,
whose table of models gets the line "mico". Tokens are cut and padded as in the
checkpoint; pictures are read by the decoders of the folder. Run with
CLIP_benchmark 1.6.2, whose accuracy of single labels fails with NumPy 2.4 and
later (it makes a number of an array of one).
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

try:
  import torch
  from clip_benchmark import models
except ImportError as error:
  raise ImportError(
    f"CLIP_benchmark cannot be loaded ({error}): pip install clip_benchmark.",
    name=error.name,
  ) from error

MODEL_TYPE = "mico"


class Model(torch.nn.Module):
  """The two towers under the names that CLIP_benchmark calls.

  Attributes:
    mico: of the folder.
  """

  def __init__(self, mico: Any):
    """Wraps a model of an exported folder."""
    super().__init__()
    self.mico = mico

  def _embed(self, key: str, rows: Any) -> Any:
    _, pooled, _ = self.mico.encode_all({key: rows.to(self.mico.device)})
    letter = self.mico.modalities[key]["letter"]
    return self.mico.features(letter, pooled)

  def encode_image(self, pixels: Any) -> Any:
    """Unit-norm embeddings [B, E] of pixels [B, 1, Y, X, 3]."""
    return self._embed("image", pixels)

  def encode_text(self, ids: Any) -> Any:
    """Unit-norm embeddings [B, E] of token ids [B, L]."""
    return self._embed("text", ids)


def load(
  model_name: str,
  pretrained: str,
  cache_dir: str | None = None,
  device: Any = "cpu",
) -> tuple[Model, Any, Any]:
  """What CLIP_benchmark asks of a line of its table.

  Args:
    model_name: names the results; not used here.
    pretrained: folder of `mico-jax export --to torch`.
    cache_dir: not used.
    device: of PyTorch.

  Returns:
    The model, the transform of a Pillow image, and the tokenizer.

  Raises:
    ValueError: if the folder is no export.
  """
  del model_name, cache_dir
  path = pathlib.Path(pretrained or "").resolve() / "modeling_mico.py"
  spec = importlib.util.spec_from_file_location("modeling_mico_bench", path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise ValueError(
      f"--pretrained {pretrained!r}: there is no modeling_mico.py; give the "
      "folder that `mico-jax export --to torch` wrote."
    )
  module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  mico = module.MiCo.from_folder(path.parent).to(device)

  def transform(image: Any) -> Any:
    return mico.reader.pixels("image", image).float()

  def tokenize(texts: str | Sequence[str]) -> Any:
    rows = [texts] if isinstance(texts, str) else list(texts)
    return mico.tokens("text", rows)

  return Model(mico).eval(), transform, tokenize


def register() -> None:
  """Adds the line to the table of CLIP_benchmark."""
  models.TYPE2FUNC[MODEL_TYPE] = load
  if MODEL_TYPE not in models.MODEL_TYPES:
    models.MODEL_TYPES.append(MODEL_TYPE)


if __name__ == "__main__":
  from clip_benchmark.cli import main

  register()
  main()
