"""What a run stores in its checkpoints, and how it starts from another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax.checkpoint import manager, manifest, restore
from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.inputs import Preparer
from mico_jax.models import MiCo
from mico_jax.models.resize import resize_frames, resize_positions
from mico_jax.train.state import logical_axes
from mico_jax.types import Params
from mico_jax.verification import make_self_check


def make_extras(
  config: Config,
  model: MiCo,
  tokenizer: Tokenizer,
  params: Params,
  *,
  mesh_shape: Mapping[str, int] | None = None,
  self_check: bool = True,
) -> manager.Extras:
  """Everything a checkpoint says beside the state.

  Args:
    config: of the run.
    model: from `mico_jax.models.build`.
    tokenizer: of the run; its files are copied into each checkpoint.
    params: parameters or their shapes, for the names of what objectives add.
    mesh_shape: mesh axes and sizes, for the topology.
    self_check: compute the stored outputs at each save.
  """
  where = manager.topology()
  if mesh_shape is not None:
    where["mesh"] = dict(mesh_shape)
  return manager.Extras(
    logical_axes=logical_axes(model, params),
    tokenizer_files=tokenizer.files(),
    tokenizer_info={
      **dataclasses.asdict(tokenizer.info),
      "sha256": tokenizer.sha256,
    },
    preprocessing=Preparer(config, tokenizer).describe(),
    topology=where,
    self_check=make_self_check(config, tokenizer) if self_check else None,
  )


def _resize_positions(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return resize_positions(table, round((shape[0] - 1) ** 0.5))


def _resize_frames(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return resize_frames(table, shape[0])


# Path regex -> resizer of tables that depend on image size or frame count.
RESIZERS: Mapping[str, restore.Resizer] = {
  r"^vision/pos_embed$": _resize_positions,
  r"^frame_embed/": _resize_frames,
}
# Parts a checkpoint may lack: heads, contexts and options of the new config.
MAY_BE_NEW = (
  r"^contrastive_head/",
  r"^matching_head/",
  r"^project/",
  r"^type_embed/",
  r"^frame_embed/",
  r"^embedding/",
  r"^context_pos$",
  r"^sample_embed$",
  r"^joined_pos$",
  r"^objective/",
  r"^lora/",
)


def load_init(
  path: epath.PathLike, config: Config, params: Params
) -> tuple[Params, restore.LoadReport]:
  """Parameters of `--init CKPT` for a new run.

  Position and frame tables are resized, new heads keep their fresh values and
  are listed, everything else must fit.

  Args:
    path: workdir or step folder; averaged weights are taken if it has them.
    config: of the new run.
    params: its freshly initialised parameters, which give shapes and
      placement.

  Raises:
    CheckpointError: if the checkpoint does not verify or does not fit.
  """
  checkpoint = restore.open_checkpoint(path)
  source = dict(checkpoint.params)
  if "lora" in source and config.optimizer.lora_rank == 0:
    from mico_jax.train import lora

    alpha = checkpoint.config.optimizer.lora_alpha
    source = dict(lora.merge(source, alpha=alpha))
  loaded, report = restore.partial_load(
    params, source, resizers=RESIZERS, may_be_new=MAY_BE_NEW
  )
  flat, like = manifest.flatten(loaded), manifest.flatten(params)
  placed = {
    name: jax.device_put(value, like[name].sharding)
    if isinstance(like[name], jax.Array)
    else value
    for name, value in flat.items()
  }
  return manifest.unflatten(placed), report
