"""`pretrain --init CKPT`: start from the parameters of another run.

Position and frame tables are resized (those of texts, too); heads, tables and
embeddings of sensors that the checkpoint lacks keep their fresh values and are
listed; everything else must fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax.aliases import Params
from mico_jax.checkpoint import manifest, restore
from mico_jax.config import Config, ObjectivesConfig
from mico_jax.models.resize import (
  resize_frames,
  resize_table,
  resize_text_positions,
)
from mico_jax.objectives import OBJECTIVES, make_objective
from mico_jax.train import lora

RESIZERS: Mapping[str, restore.Resizer] = {
  r"^vision/pos_embed$": lambda table, shape: resize_table(table, shape[0]),
  r"^frame_(embed|gain)/": lambda table, shape: resize_frames(table, shape[0]),
  r"^(text/embed/positions|joined_pos)$": lambda table, shape: (
    resize_text_positions(table, shape[0])
  ),
}
MAY_BE_NEW = (
  r"^contrastive_head/",
  r"^matching_head/",
  r"^project/",
  r"^embedding/",
  r"^frame_(embed|gain)/",
  r"^(temperature_log|frame_change)/",
  r"^type_embed/",
  r"^(context_pos|sample_embed|joined_pos)",
  r"^objective/",
  r"^lora/",
)


def warm_start(
  params: Params,
  path: epath.PathLike,
  *,
  tokenizer_sha256: str = "",
  preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
  objectives: ObjectivesConfig | None = None,
) -> tuple[dict[str, Any], restore.LoadReport, list[str]]:
  """Puts a checkpoint's parameters into freshly initialised ones.

  Low-rank deltas of the checkpoint are merged into its weights first.

  Args:
    params: of the new run, on devices or host.
    path: workdir or step folder of another run; its averaged weights are
      taken if there are any.
    tokenizer_sha256: of the new run's tokenizer; "": not compared.
    preprocessing: of the new run, by modality, as manifests describe it; None:
      not compared.
    objectives: of the new run; heads of other classes stay fresh. None: not
      compared.

  Returns:
    Host parameters of the new run's shapes, what was done, and notes: newer
    checkpoints that were skipped, another tokenizer or preprocessing mode,
    heads of other classes.

  Raises:
    CheckpointError: if the checkpoint does not verify or does not fit.
  """
  checkpoint = restore.open_checkpoint(path)
  notes = list(checkpoint.warnings)
  theirs = checkpoint.manifest["tokenizer"].get("sha256", tokenizer_sha256)
  if tokenizer_sha256 and theirs != tokenizer_sha256:
    notes.append(
      "its tokenizer is another one, so its word embeddings mean other words; "
      "set data.tokenizer to the checkpoint's (its folder manifest/tokenizer)."
    )
  former = checkpoint.manifest["preprocessing"]
  for key in (preprocessing or {}).keys() & former.keys():
    then, now = (x[key]["train"] for x in (former, preprocessing or {}))
    if then != now:
      notes.append(
        f"it was trained with data.inputs.{key}.mode={then!r}; this run has "
        f"{now!r}."
      )
  alpha = checkpoint.config.optimizer.lora_alpha
  source = lora.merge(checkpoint.params, alpha=alpha)
  # Parameters that an import found no weights for are random values as well.
  fresh = checkpoint.manifest.get("import", {}).get("new", [])
  if fresh:
    flat = manifest.flatten(source)
    source = manifest.unflatten(
      {path: flat[path] for path in flat if path not in fresh}
    )
  if objectives is not None:
    source, others = _same_heads(source, checkpoint.config, objectives)
    notes += others
  loaded, report = restore.partial_load(
    jax.tree.map(np.asarray, params),
    source,
    resizers=RESIZERS,
    may_be_new=(*MAY_BE_NEW, *(f"^{re.escape(path)}$" for path in fresh)),
  )
  return loaded, report, notes


def _same_heads(
  source: Params, config: Config, objectives: ObjectivesConfig
) -> tuple[Params, list[str]]:
  """A checkpoint's parameters without heads that learned something else.

  Args:
    source: parameters of the checkpoint.
    config: of the checkpoint.
    objectives: of the new run.

  Returns:
    The parameters, and a note for each head that is left out.
  """
  kept, notes = {}, []
  for name, tensors in source.get("objective", {}).items():
    kept[name] = dict(tensors)
    if name not in OBJECTIVES:
      continue
    then, now = (
      make_objective(x, name) for x in (config.objectives, objectives)
    )
    for group in tensors:
      before, after = then.learns(group), now.learns(group)
      if None not in (before, after) and before != after:
        del kept[name][group]
        notes.append(
          f"its head objective/{name}/{group} learned something else (other "
          "classes, scales or steps); that of this run starts anew."
        )
  return {**source, "objective": kept} if kept else source, notes
