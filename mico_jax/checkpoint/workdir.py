"""Binding of a workdir to one config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from mico_jax import config as config_lib
from mico_jax import files
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.config import Config, ConfigError

# Keys that may change when a run is resumed: they alter neither the samples of
# a step nor its arithmetic.
_FREE_KEYS = re.compile(
  r"^(name|generation|evaluation\..*|parallel\..*"
  r"|train\.(log_every|checkpoint_every|keep|keep_best|eval_every"
  r"|nonfinite_patience|collapse_patience|profile_steps|tensorboard|wandb"
  r"|watchdog_s|compilation_cache)"
  r"|data\.(num_threads|num_workers|prefetch|timeout|max_bad_fraction"
  r"|cache_gb))(:|\.|$)"
)
# Filled in when a run starts: equal to an empty value.
_FILLED_KEYS = ("count", "sha256")


def claim_workdir(
  workdir: epath.PathLike,
  config: Config,
  is_pinned: Callable[[str, str], bool] = lambda name, sha256: False,
) -> bool:
  """Binds a workdir to a config, or checks that it is bound to this one.

  The config is stored as `<workdir>/config.json`. Keys that change neither
  data nor arithmetic (logging, threads, evaluation, mesh) may differ.

  Args:
    workdir: of the run.
    config: of this start.
    is_pinned: whether a source (by name) is the one of a stored SHA-256 that
      differs from the config's: an earlier version's.

  Returns:
    True if the workdir was already bound (a run to resume).

  Raises:
    ConfigError: naming the first keys that differ.
  """
  path = epath.Path(workdir) / "config.json"
  try:
    text: str | None = files.read_text(path)
  except FileNotFoundError:
    text = None
  if text is not None:
    try:
      stored = json.loads(text)
    except ValueError:
      raise ConfigError(
        f"{path} is not valid JSON; restore it or use another --workdir."
      ) from None
    wanted = json.loads(config_lib.to_json(config))
    stored = _filled(_with_defaults(stored), wanted, is_pinned)
    lines = [
      line
      for line in manifest_lib.differences(stored, wanted)
      if not _FREE_KEYS.match(line)
    ]
    if lines:
      more = f" ({len(lines) - 3} more)" if len(lines) > 3 else ""
      raise ConfigError(
        f"workdir {str(workdir)!r} belongs to another config: "
        f"{'; '.join(lines[:3])}{more}. Use another --workdir (and --init to "
        "start from its parameters), or the former config."
      )
    return True
  if jax.process_index() == 0:
    files.make_folder(path.parent)
    files.write_text(path, config_lib.to_json(config))
  return False


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
  """A stored config with newer fields at their defaults."""
  try:
    return json.loads(config_lib.to_json(config_lib.from_dict(stored)))
  except ConfigError:  # has a removed field, which the comparison names
    return stored


def _filled(
  stored: dict[str, Any],
  wanted: dict[str, Any],
  is_pinned: Callable[[str, str], bool],
) -> dict[str, Any]:
  """`stored` with the sources' counts and hashes as in `wanted` if unset.

  So are hashes of former versions, if the sources are the same.
  """
  new = wanted.get("data", {}).get("sources", {})
  for name, source in stored.get("data", {}).get("sources", {}).items():
    for key in _FILLED_KEYS:
      if name in new and not (source.get(key) and new[name].get(key)):
        source[key] = new[name].get(key)
    old = source.get("sha256")
    if name in new and old != new[name].get("sha256"):
      if_same = new[name].get("sha256") if is_pinned(name, str(old)) else old
      source["sha256"] = if_same
  for name, task in stored.get("tasks", {}).items():
    other = wanted.get("tasks", {}).get(name, {})
    if not (task.get("mixture") and other.get("mixture")):
      task["mixture"] = other.get("mixture")
  return stored
