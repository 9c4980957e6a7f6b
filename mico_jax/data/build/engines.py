"""Who builds the units: this process, local workers, or Ray Data.

Engines hand out units and nothing else; what a unit writes is the same under
each (`mico_jax.data.build.unit`). After a failure, the same command goes on
with the units that are not done.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.data.build.job import Job
from mico_jax.data.build.rows import Unit
from mico_jax.data.build.unit import Tick, run_unit
from mico_jax.data.build.workers import Crew
from mico_jax.failures import TransientError


def local(
  job: Job, units: Sequence[Unit], count: int, workers: int, tick: Tick
) -> None:
  """Builds units in processes of this machine.

  Workers are watched: see `mico_jax.data.build.watch`. Without any (0), this
  process builds, and nothing ends what hangs.

  Raises:
    TransientError: if a worker dies, as by a lack of memory.
    ConfigError, TransientError: as `run_unit`.
  """
  if not workers:
    for unit in units:
      run_unit(job, unit, count, tick)
    return
  with Crew(job, count, workers) as crew:
    crew.build(units, tick)


def ray_data(
  job: Job, units: Sequence[Unit], count: int, workers: int, tick: Tick
) -> None:
  """Builds units as a Ray Data job, one CPU each, on the cluster of `ray.init`.

  The folder of the result and the raw files must be the same on every node.

  Raises:
    ConfigError: if Ray is not installed.
    ConfigError, TransientError: as `run_unit`.
  """
  try:
    import ray
    import ray.data
  except ImportError as error:
    raise ConfigError(
      f"engine=ray: {error}; pip install 'mico-jax[ray]'."
    ) from error
  if not ray.is_initialized():
    ray.init(log_to_driver=False)
  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  items = [{"unit": pickle.dumps(unit)} for unit in units]
  data = ray.data.from_items(items, override_num_blocks=len(items))
  made = data.map(
    functools.partial(_ray_unit, job=job, count=count),
    num_cpus=1,
    compute=ray.data.TaskPoolStrategy(size=min(workers, len(items))),
  )
  for row in made.iter_rows():
    if row["error"]:
      raise _ERRORS[row["error"]](row["text"])
    tick(row["size"])


# What a unit may raise; Ray would wrap it.
_ERRORS = {e.__name__: e for e in (ConfigError, TransientError)}


def _ray_unit(row: dict[str, Any], job: Job, count: int) -> dict[str, Any]:
  """One task of Ray: the unit of a row."""
  unit = pickle.loads(row["unit"])
  try:
    run_unit(job, unit, count)
  except (ConfigError, TransientError) as error:
    kind = TransientError if isinstance(error, TransientError) else ConfigError
    return {"size": 0, "error": kind.__name__, "text": str(error)}
  return {"size": unit.size, "error": "", "text": ""}


Engine = Callable[[Job, Sequence[Unit], int, int, Tick], None]
ENGINES: dict[str, Engine] = {"local": local, "ray": ray_data}
