"""Optional packages: which extra brings one, and how to install it.

The package may have come from a checkout, an archive, a repository or an index;
the command that is proposed takes the extra from the same place.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import urllib.parse
from typing import Any

NAME = "mico-jax"

# Optional package -> the extra that installs it.
EXTRAS: dict[str, str] = {
  "edfio": "medical",
  "gcsfs": "gcs",
  "google": "gcs",
  "huggingface_hub": "hub",
  "laspy": "pointcloud",
  "plyfile": "pointcloud",
  "pyarrow": "eval",
  "pydicom": "medical",
  "rdkit": "molecules",
  "s3fs": "s3",
  "shtab": "completion",
  "starlette": "app",
  "timm": "parity",
  "torch": "torch",
  "uvicorn": "app",
  "wandb": "wandb",
}


def install(extra: str) -> str:
  """The command that installs an extra, e.g. "pip install -e '.../[torch]'"."""
  return command(extra, _origin())


def command(extra: str, origin: dict[str, Any]) -> str:
  """The command for a package that came from a known place.

  Args:
    extra: name of it.
    origin: content of the package's direct_url.json (PEP 610); {}: an index.
  """
  wanted = f"{NAME}[{extra}]"
  url = str(origin.get("url", ""))
  if not url:
    return f"pip install '{wanted}'"
  if "dir_info" in origin:
    folder = urllib.parse.unquote(urllib.parse.urlparse(url).path)
    flag = "-e " if origin["dir_info"].get("editable") else ""
    return f"pip install {flag}'{folder}[{extra}]'"
  if version_control := origin.get("vcs_info"):
    url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
  return f"pip install '{wanted} @ {url}'"


@functools.cache
def _origin() -> dict[str, Any]:
  """Where the installed package came from; {}: an index, or not installed."""
  try:
    text = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    return json.loads(text) if text else {}
  except (importlib.metadata.PackageNotFoundError, ValueError):
    return {}
