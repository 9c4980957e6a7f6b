"""`pretrain --init CKPT`: start from the parameters of another run.

Position and frame tables are resized, heads and tables that the checkpoint
lacks keep their fresh values and are listed, everything else must fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax.checkpoint import restore
from mico_jax.models.resize import resize_frames, resize_positions
from mico_jax.types import Params

RESIZERS: Mapping[str, restore.Resizer] = {
  r"^vision/pos_embed$": lambda table, shape: resize_positions(
    table, math.isqrt(shape[0] - 1)
  ),
  r"^frame_embed/": lambda table, shape: resize_frames(table, shape[0]),
}
MAY_BE_NEW = (
  r"^contrastive_head/",
  r"^matching_head/",
  r"^project/",
  r"^frame_embed/",
  r"^type_embed/",
  r"^(context_pos|sample_embed|joined_pos)",
  r"^objective/",
  r"^lora/",
)


def warm_start(
  params: Params, path: epath.PathLike
) -> tuple[dict[str, Any], restore.LoadReport]:
  """Puts a checkpoint's parameters into freshly initialised ones.

  Args:
    params: of the new run, on devices or host.
    path: workdir or step folder of another run; its averaged weights are
      taken if there are any.

  Returns:
    Host parameters of the new run's shapes, and what was done.

  Raises:
    CheckpointError: if the checkpoint does not verify or does not fit.
  """
  checkpoint = restore.open_checkpoint(path)
  return restore.partial_load(
    jax.tree.map(np.asarray, params),
    checkpoint.params,
    resizers=RESIZERS,
    may_be_new=MAY_BE_NEW,
  )
