"""Fetching weights of a Hugging Face repository: hf://owner/name.

What is fetched is data: code and pickled arrays of a checkpoint are never asked
for, and nothing is run.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from mico_jax import extras, files
from mico_jax.config import ConfigError

SCHEME = "hf://"
# Files that an import may need; never code.
PATTERNS = (
  "*.safetensors",
  "*.safetensors.index.json",
  "*.pt",
  "*.pth",
  "*.bin",
  "*.json",
  "vocab.txt",  # *.json holds config, preprocessing and tokenizers
  "tokenizer/*",  # of what `export --to torch` wrote
)
# Of a workdir or step folder, without the optimizer's state, and of a folder
# that `export --to torch` wrote. A star stands for several parts of a path.
CHECKPOINT_PATTERNS = (
  *("*params/*", "*ema/*", "*manifest/*", "*config/*", "*data/data.json"),
  *("*commit_success.txt", "*_CHECKPOINT_METADATA"),
  *("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer/*"),
)
_NEVER = ("*opt_state/*", "*.py", "*.pt", "*.pth", "*.bin", "*.pkl")


def is_address(path: str) -> bool:
  """Whether a path is hf://owner/name."""
  return path.startswith(SCHEME)


def local(path: str) -> pathlib.Path:
  """The local path of weights to import, fetched if it is hf://owner/name.

  Raises:
    ConfigError: for a malformed name, without huggingface_hub, or if the
      repository cannot be fetched.
  """
  if not is_address(path):
    return pathlib.Path(path)
  return _fetch(path, allow_patterns=list(PATTERNS))


def checkpoint(path: str) -> pathlib.Path:
  """The folder of a checkpoint at hf://owner/name, fetched.

  Its files lie in the cache folder of this user, as files: the library's own
  cache has links, which a checkpoint may not have.

  Raises:
    ConfigError: see `local`.
  """
  name = path.removeprefix(SCHEME)
  folder = files.user_cache("hub") / re.sub(r"[^\w.-]", "--", name)
  return _fetch(
    path,
    allow_patterns=list(CHECKPOINT_PATTERNS),
    ignore_patterns=list(_NEVER),
    local_dir=str(folder),
  )


def _fetch(path: str, **options: Any) -> pathlib.Path:
  """The folder of a snapshot; options as of `snapshot_download`."""
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
      match.group(1), revision=match.group(2), **options
    )
  except Exception as error:  # network, permissions, unknown name
    text = " ".join(str(error).split())[:200]
    raise ConfigError(f"{path}: cannot be fetched ({text}).") from error
  return pathlib.Path(folder)
