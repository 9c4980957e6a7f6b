"""Checkpoints as models of public evaluation harnesses, one file each.

Each file needs its harness installed, and says which versions it was run with.
"""

from __future__ import annotations

from typing import Any


def lmms_manifest() -> Any:
  """What lmms-eval reads of the entry point `lmms_eval.models`.

  Here, because lmms-eval calls it at every start: nothing heavy may load.
  """
  from lmms_eval.models.registry_v2 import ModelManifest

  path = f"{__name__}.lmms_model.MiCoWriter"
  return ModelManifest(model_id="mico", simple_class_path=path)
