"""Shardings of a config, as a table and as a picture.

Nothing is allocated: shapes come from tracing, places from the mesh.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from mico_jax.config import Config
from mico_jax.models import build
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run.checks import check_mesh
from mico_jax.train.optimizer import make_optimizer
from mico_jax.train.state import abstract_params, create_state, state_shardings

_ROWS_DRAWN = 40
_COLUMNS_DRAWN = 64


@dataclass(frozen=True)
class Held:
  """One array of the train state.

  Attributes:
    path: e.g. "params/vision/blocks/mlp/fc1/kernel".
    shape: of the whole array.
    dtype: of its elements.
    sharding: on the mesh.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  sharding: NamedSharding

  @property
  def shard(self) -> tuple[int, ...]:
    """Shape of the part on one device."""
    return tuple(self.sharding.shard_shape(self.shape))

  @property
  def num_bytes(self) -> int:
    """Bytes of the whole array."""
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def shard_bytes(self) -> int:
    """Bytes of the part on one device."""
    return math.prod(self.shard) * self.dtype.itemsize

  def pieces(self, devices: Sequence[Any]) -> list[int]:
    """Number of the piece that each device holds; equal ones are copies."""
    known: dict[Any, int] = {}
    indices = self.sharding.devices_indices_map(self.shape)
    keys = [tuple((s.start or 0, s.stop) for s in indices[d]) for d in devices]
    return [known.setdefault(key, len(known)) for key in keys]


@dataclass(frozen=True)
class ShardingView:
  """The train state of a config on a mesh.

  Attributes:
    mesh: of the config.
    arrays: parameters first, then optimizer state and average.
    rows: task -> rows of its batch on one device.
  """

  mesh: Mesh
  arrays: tuple[Held, ...]
  rows: dict[str, int]

  def totals(self) -> dict[str, tuple[int, int]]:
    """Part of the state -> bytes in all, bytes on one device."""
    totals: dict[str, tuple[int, int]] = {}
    for held in self.arrays:
      top = held.path.partition("/")[0]
      whole, part = totals.get(top, (0, 0))
      totals[top] = whole + held.num_bytes, part + held.shard_bytes
    return totals

  def lines(self) -> list[tuple[str, ...]]:
    """Table: path, shape, mesh axes, shard, copies, bytes on one device."""
    rows: list[tuple[str, ...]] = [
      ("array", "shape", "mesh axes", "one device", "copies", "bytes")
    ]
    for held in self.arrays:
      pieces = held.num_bytes // max(held.shard_bytes, 1)
      rows.append(
        (
          held.path,
          str(list(held.shape)),
          _axes_text(held),
          str(list(held.shard)),
          str(self.mesh.size // max(pieces, 1)),
          f"{held.shard_bytes:,}",
        )
      )
    for name, (whole, part) in self.totals().items():
      text = f"{whole / 2**20:,.1f} MiB in all"
      rows.append((name, text, "", "", "", f"{part:,}"))
    return rows

  def as_dict(self) -> dict[str, Any]:
    """JSON types only."""
    return {
      "mesh": dict(self.mesh.shape),
      "rows_per_device": self.rows,
      "bytes": {k: list(v) for k, v in self.totals().items()},
      "arrays": {
        held.path: {
          "shape": list(held.shape),
          "shard": list(held.shard),
          "axes": _axes_text(held),
          "bytes_per_device": held.shard_bytes,
        }
        for held in self.arrays
      },
    }

  def draw(self, path: epath.PathLike) -> None:
    """Writes the picture: a row per parameter, a column per device.

    Equal colours in a row are copies of one piece. The largest parameters are
    drawn, and up to 64 devices.

    Args:
      path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    params = [h for h in self.arrays if h.path.startswith("params/")]
    largest = sorted(params, key=lambda h: -h.num_bytes)[:_ROWS_DRAWN]
    chosen = [h for h in params if h in largest]
    devices = list(self.mesh.devices.ravel())[:_COLUMNS_DRAWN]
    grid = np.array([h.pieces(devices) for h in chosen], float)
    most = grid.max(axis=1, keepdims=True)
    shades = np.where(most > 0, grid / np.maximum(most, 1), np.nan)
    width = max(9.0, 5.5 + 0.22 * len(devices))
    figure = Figure(figsize=(width, 2.0 + 0.22 * len(chosen)))
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    plot.set_facecolor("#d9d9d9")  # whole on every device
    plot.imshow(shades, aspect="auto", cmap="viridis", interpolation="none")
    labels = [
      f"{h.path.removeprefix('params/')}  {list(h.shape)} -> {list(h.shard)}"
      for h in chosen
    ]
    plot.set_yticks(range(len(chosen)), labels, fontsize=6)
    plot.set_xticks(range(len(devices)), [str(d.id) for d in devices], size=6)
    plot.set_xlabel("device, in the order of the mesh")
    sizes = ", ".join(f"{k} {v}" for k, v in self.mesh.shape.items() if v > 1)
    totals = "; ".join(
      f"{name} {part / 2**20:,.1f} of {whole / 2**20:,.1f} MiB"
      for name, (whole, part) in self.totals().items()
    )
    plot.set_title(
      f"mesh: {sizes or 'one device'}. A device holds {totals}.\n"
      "One colour of a row is one piece; grey: whole on every device",
      fontsize=8,
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    epath.Path(path).write_bytes(buffer.getvalue())


def _axes_text(held: Held) -> str:
  parts = [
    "x".join((p,) if isinstance(p, str) else tuple(p or ())) or "-"
    for p in held.sharding.spec
  ]
  return ", ".join([*parts, *["-"] * (len(held.shape) - len(parts))])


def view(config: Config, devices: Sequence[Any] | None = None) -> ShardingView:
  """Finds the place of every array of a config's train state.

  Args:
    config: as loaded; a vocabulary of 0 is counted as none.
    devices: of the mesh; None: those of JAX.

  Raises:
    ConfigError: if mesh, rules and model do not fit.
  """
  mesh = make_mesh(config.parallel, devices)
  check_mesh(config, mesh)
  model = build(config.model)
  params = abstract_params(model, config)
  optimizer = make_optimizer(config.optimizer, params, config.train.steps)
  state = jax.eval_shape(
    lambda p: create_state(p, optimizer, ema=config.optimizer.ema > 0), params
  )
  rules = sharding.rules_by_name(config.parallel.rules)
  places = state_shardings(
    mesh, model, state, rules, offload=config.parallel.offload
  )
  arrays = []
  for part in ("params", "opt_state", "ema"):
    leaves = jax.tree.leaves_with_path(getattr(state, part))
    targets = jax.tree.leaves(getattr(places, part))
    for (path, leaf), place in zip(leaves, targets, strict=True):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      arrays.append(
        Held(f"{part}/{name}", tuple(leaf.shape), np.dtype(leaf.dtype), place)
      )
  batch = sharding.batch_sharding(mesh, rules)
  rows = {
    name: batch.shard_shape((task.batch_size,))[0]
    for name, task in config.tasks.items()
  }
  return ShardingView(mesh, tuple(arrays), rows)
