"""Versions and devices of this installation, for `mico-jax doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

import jax

import mico_jax
from mico_jax.checkpoint import manifest
from mico_jax.config import ConfigError, config_dirs
from mico_jax.parallel.backend import require_backend

# Distribution -> what it is for.
OPTIONAL: dict[str, str] = {
  "pyarrow": "embed --out x.parquet (extra: eval)",
  "torch": "export and parity tests (extra: torch)",
  "wandb": "Weights & Biases logging (extra: wandb)",
  "gcsfs": "gs:// paths (extra: gcs)",
  "s3fs": "s3:// paths (extra: s3)",
}
BACKEND, PROBLEM = "backend", "problem"  # lines of the report
_REQUIRED = ("av", "pillow", "soundfile", "sentencepiece", "clu", "etils")


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _memory_gb() -> float | None:
  try:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError, AttributeError):
    return None
  return round(pages * size / 1e9, 1)


def _devices() -> dict[str, Any]:
  """The platform with its devices, or why there is none."""
  try:
    devices: dict[str, Any] = {BACKEND: require_backend()}
  except ConfigError as error:
    return {BACKEND: None, PROBLEM: str(error)}
  devices["processes"] = jax.process_count()
  for kind in sorted({d.device_kind for d in jax.devices()}):
    count = sum(d.device_kind == kind for d in jax.devices())
    devices[f"device {kind}"] = count
  return devices


def report(folder: str = ".") -> dict[str, dict[str, Any]]:
  """Versions, devices, optional packages and the machine.

  Args:
    folder: whose disk is measured.
  """
  versions = {"mico_jax": mico_jax.__version__, **manifest.versions()}
  for name in _REQUIRED:
    versions[name] = _version(name) or "missing"
  optional = {
    name: _version(name) or f"not installed; for {purpose}"
    for name, purpose in OPTIONAL.items()
  }
  disk = shutil.disk_usage(folder)
  machine = {
    "system": platform.platform(),
    "cpu cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "memory GB": _memory_gb(),
    "disk free GB": round(disk.free / 1e9, 1),
    "configs": ", ".join(str(d) for d in config_dirs()) or "none found",
  }
  return {
    "versions": versions,
    "devices": _devices(),
    "optional packages": optional,
    "machine": machine,
  }
