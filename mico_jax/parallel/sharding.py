"""Shardings from logical axis names, and global arrays from rows of a host.

A table of rules maps logical axes of parameters (`mico_jax.axes`) to mesh axes;
an axis without a rule is an error, not "replicated". Rows of a batch are split
over the mesh axes of `axes.BATCH`; a process loads exactly the rows of its
devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from mico_jax import axes
from mico_jax.aliases import Batch, PyTree
from mico_jax.config import ConfigError
from mico_jax.printing import known_names

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]


def rules_by_name(name: str) -> Rules:
  """The rules that `parallel.rules` names.

  Raises:
    ConfigError: for an unknown name, listing the known ones.
  """
  if name not in axes.RULES:
    raise ConfigError(
      f"parallel.rules={name!r} is unknown; {known_names(name, axes.RULES)}"
    )
  return axes.RULES[name]


def spec(logical: Sequence[str | None], rules: Rules) -> PartitionSpec:
  """Mesh axes of one array from its logical axes.

  A mesh axis is used once per array, by the first logical axis that maps to it.

  Raises:
    ValueError: for a logical axis without a rule.
  """
  table = dict(rules)
  used: set[str] = set()
  parts: list[str | tuple[str, ...] | None] = []
  for name in logical:
    if name is not None and name not in table:
      raise ValueError(
        f"logical axis {name!r} has no rule; {known_names(name, table)} Add "
        "it to mico_jax.axes and to each table of axes.RULES."
      )
    target = table[name] if name is not None else None
    wanted = (target,) if isinstance(target, str) else (target or ())
    if not wanted or used.intersection(wanted):
      parts.append(None)
      continue
    used.update(wanted)
    parts.append(target)
  while parts and parts[-1] is None:
    parts.pop()
  return PartitionSpec(*parts)


def fitting(
  wanted: PartitionSpec, shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
  """`wanted` without the mesh axes that do not divide their dimension."""
  parts: list[Any] = []
  for size, target in zip(shape, wanted, strict=False):
    names = (target,) if isinstance(target, str) else (target or ())
    count = math.prod(mesh.shape[name] for name in names)
    parts.append(target if size % count == 0 else None)
  while parts and parts[-1] is None:
    parts.pop()
  return PartitionSpec(*parts)


def param_shardings(
  mesh: Mesh,
  logical_axes: PyTree,
  rules: Rules = axes.DDP_RULES,
  *,
  shapes: PyTree | None = None,
) -> PyTree:
  """Tree of shardings for a tree of logical axes (tuples are leaves).

  Args:
    mesh: of the run.
    logical_axes: names of each dimension of each parameter.
    rules: logical axis -> mesh axes.
    shapes: tree of arrays or shapes; a dimension that its mesh axes do not
      divide is not split (such as a vocabulary of 30522 over 4 devices). None:
      all dimensions are assumed to divide.

  Raises:
    ValueError: for a logical axis without a rule, or a rule whose mesh axis the
      mesh lacks.
  """
  for name, target in rules:
    for axis in (target,) if isinstance(target, str) else (target or ()):
      if axis not in mesh.axis_names:
        raise ValueError(
          f"rule {name!r} -> {axis!r}: the mesh has only "
          f"{', '.join(mesh.axis_names)}; set parallel.mesh."
        )
  is_leaf = lambda x: isinstance(x, tuple)
  specs = jax.tree.map(
    lambda logical: spec(logical, rules), logical_axes, is_leaf=is_leaf
  )
  is_leaf = lambda x: isinstance(x, PartitionSpec)
  if shapes is not None:
    specs = jax.tree.map(
      lambda part, leaf: fitting(part, leaf.shape, mesh),
      specs,
      shapes,
      is_leaf=is_leaf,
    )
  return jax.tree.map(
    lambda part: NamedSharding(mesh, part), specs, is_leaf=is_leaf
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = axes.DDP_RULES) -> NamedSharding:
  """Sharding of rows (axis 0) over the mesh axes of `axes.BATCH`."""
  return NamedSharding(mesh, spec((axes.BATCH,), rules))


def like_params(
  mesh: Mesh, tree: PyTree, params: PyTree, shardings: PyTree
) -> PyTree:
  """Shardings of a tree that contains trees like the parameters, as moments.

  A leaf whose path ends with the path of a parameter of the same shape gets the
  sharding of that parameter; every other leaf is replicated.
  """
  known: dict[tuple[str, ...], tuple[tuple[int, ...], NamedSharding]] = {}
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(shardings),
    strict=True,
  ):
    known[_names(path)] = (tuple(leaf.shape), sharding)

  def find(path: Any, leaf: Any) -> NamedSharding:
    names = _names(path)
    for start in range(len(names)):
      if names[start:] in known:
        shape, sharding = known[names[start:]]
        return sharding if shape == tuple(leaf.shape) else replicated(mesh)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(find, tree)


def _names(path: Any) -> tuple[str, ...]:
  return tuple(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def local_rows(
  mesh: Mesh, global_batch: int, rules: Rules = axes.DDP_RULES
) -> Int[np.ndarray, " C"]:
  """Global rows on the devices of this process, ascending.

  Raises:
    ConfigError: if the batch does not divide over the devices.
  """
  sharding = batch_sharding(mesh, rules)
  try:
    index_map = sharding.addressable_devices_indices_map((global_batch,))
  except ValueError:
    raise ConfigError(
      f"batch_size={global_batch} does not divide over the {mesh.size} devices "
      f"of the mesh {dict(mesh.shape)}; choose a multiple."
    ) from None
  rows = [
    np.arange(global_batch)[index[0] if index else slice(None)]
    for index in index_map.values()
  ]
  return np.unique(np.concatenate(rows))


def put_batch(
  batch: Batch,
  mesh: Mesh,
  rules: Rules = axes.DDP_RULES,
) -> Mapping[str, Any]:
  """Global device arrays from the rows of this process (`local_rows`)."""
  sharding = batch_sharding(mesh, rules)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )
