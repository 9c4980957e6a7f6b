"""Who builds the units: this process, local workers, or Ray Data.

Engines hand out units and nothing else; what a unit writes is the same under
each (`mico_jax.data.build.unit`). After a failure, the same command goes on
with the units that are not done.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from mico_jax import extras, failures
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
  if job.gpus:
    raise ConfigError(
      f"gpus={job.gpus:g} is for engine=ray, which gives GPUs to workers; here "
      "a stage names its own (--set STAGE.device=cuda:0)."
    )
  if not workers:
    for unit in units:
      run_unit(job, unit, count, tick)
    return
  with Crew(job, count, workers) as crew:
    crew.build(units, tick)


def ray_data(
  job: Job, units: Sequence[Unit], count: int, workers: int, tick: Tick
) -> None:
  """Builds units as a Ray Data job on the cluster of `ray.init`.

  Each actor of the pool has one CPU, and `Job.gpus` GPUs (or a share of one)
  that Ray shows to it alone; its models are loaded once. In it a worker is
  watched as `local` does. The folder of the result and the raw files must be
  the same on every node.

  Raises:
    ConfigError: if Ray is not installed, or this machine, with no cluster, has
      no such GPU.
    ConfigError, TransientError: as `run_unit`.
  """
  try:
    import ray
    import ray.data
  except ImportError as error:
    raise ConfigError(
      f"engine=ray: {error}; {extras.install('ray')}."
    ) from error
  if not ray.is_initialized():
    ray.init(log_to_driver=False)
  there = ray.cluster_resources().get("GPU", 0.0)
  if job.gpus > there:
    text = f"gpus={job.gpus:g} a worker: Ray knows of {there:g} GPUs"
    if not os.environ.get("RAY_ADDRESS"):
      raise ConfigError(f"{text} on this machine.")
    failures.say(f"data build: {text} now and waits for more.")
  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  items = [{"unit": pickle.dumps(unit)} for unit in units]
  data = ray.data.from_items(items, override_num_blocks=len(items))
  made = data.map_batches(
    _RayWorker,
    fn_constructor_args=(job, count),
    batch_size=1,
    num_cpus=1,
    num_gpus=job.gpus or None,
    compute=ray.data.ActorPoolStrategy(
      size=min(workers or 1, len(items)), max_tasks_in_flight_per_actor=1
    ),
  )
  for row in made.iter_rows():
    if row["error"]:
      raise _ERRORS[row["error"]](row["text"])
    tick(row["size"])


# What a unit may raise; Ray would wrap it.
_ERRORS = {e.__name__: e for e in (ConfigError, TransientError)}


class _RayWorker:
  """One actor of Ray, with a worker process of its own."""

  def __init__(self, job: Job, count: int):
    """Starts nothing yet."""
    self._crew = Crew(job, count, 1)

  def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
    """Builds the one unit of a batch."""
    (data,) = batch["unit"]
    unit = pickle.loads(data)
    size, kind, text = unit.size, "", ""
    try:
      self._crew.build([unit], lambda items: None)
    except (ConfigError, TransientError) as error:
      transient = isinstance(error, TransientError)
      size, kind = 0, (TransientError if transient else ConfigError).__name__
      text = str(error)
    return {"size": [size], "error": [kind], "text": [text]}


Engine = Callable[[Job, Sequence[Unit], int, int, Tick], None]
ENGINES: dict[str, Engine] = {"local": local, "ray": ray_data}
