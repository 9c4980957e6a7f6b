"""Fetching weights of a Hugging Face repository: hf://owner/name."""

from __future__ import annotations

import pathlib
import re

from mico_jax import extras
from mico_jax.config import ConfigError

SCHEME = "hf://"
# Files that may be needed; never code.
PATTERNS = (
  "*.safetensors",
  "*.safetensors.index.json",
  "*.pt",
  "*.pth",
  "*.bin",
  "*.json",
  "vocab.txt",  # *.json holds config, preprocessing and tokenizers
)


def local(path: str) -> pathlib.Path:
  """The local path of `path`, fetched first if it is hf://owner/name.

  Raises:
    ConfigError: for a malformed name, without huggingface_hub, or if the
      repository cannot be fetched.
  """
  if not path.startswith(SCHEME):
    return pathlib.Path(path)
  name = path.removeprefix(SCHEME)
  match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
  if match is None:
    raise ConfigError(
      f"{path!r} is not hf://owner/name (or hf://owner/name@revision)."
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise ConfigError(
      f"{path}: needs huggingface_hub: {extras.install('hub')}, or give a "
      "local path."
    ) from error
  try:
    folder = huggingface_hub.snapshot_download(
      match.group(1),
      revision=match.group(2),
      allow_patterns=list(PATTERNS),
    )
  except Exception as error:  # network, permissions, unknown name
    text = " ".join(str(error).split())[:200]
    raise ConfigError(f"{path}: cannot be fetched ({text}).") from error
  return pathlib.Path(folder)
