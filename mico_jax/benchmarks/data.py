"""Cost of the input of a run: by stage and modality, as a whole, and waiting.

CPU time counts all threads of the process. Stages run one after the other on
one thread (`data_stages`); the pipeline runs as a training run has it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

from mico_jax.benchmarks import data_peers
from mico_jax.benchmarks.data_peers import Session
from mico_jax.benchmarks.data_stages import measure_stages, order_in
from mico_jax.config import ConfigError
from mico_jax.data.pipeline import Pipeline


def _cpu() -> float:
  """CPU seconds of this process and of its children that have ended."""
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def measure_pipeline(
  session: Session, samples: int, *, hosts: int = 1, step_ms: float = 0.0
) -> dict[str, Any]:
  """Rate and CPU time of the pipeline of a run on one of several hosts.

  Args:
    session: of the run.
    samples: to read at least, of this host.
    hosts: number of hosts that share the global batch.
    step_ms: time of a training step, spent asleep; 0: none, as fast as it goes.

  Returns:
    A record; "input_wait" is the share of the time in which the step waits,
    from the second batch on.

  Raises:
    ConfigError: for a batch that the hosts cannot share.
  """
  config = session.config
  sizes = {name: t.batch_size for name, t in config.tasks.items()}
  if odd := [f"{n}: {s}" for n, s in sizes.items() if s % hosts]:
    raise ConfigError(
      f"--hosts {hosts} does not divide the batch of {', '.join(odd)}."
    )
  order = order_in(session)
  steps, count = 0, 0
  while steps < 3 or count < samples:  # the first batch is not counted
    count += sizes[order.task(steps)[0]] // hosts
    steps += 1
  begin_cpu = _cpu()
  pipeline = Pipeline(
    config,
    session.tokenizer,
    end_step=steps,
    rows=lambda size: range(size // hosts),
    sources=dict(session.sources),
  )
  waited, begin, seen, first = 0.0, 0.0, 0, 0
  asked = time.perf_counter()
  for number, (_, _, batch) in enumerate(pipeline):
    got = time.perf_counter()
    size = len(batch["row"])
    if number:
      waited, seen = waited + got - asked, seen + size
    else:
      begin, first = got, size
    time.sleep(step_ms / 1000)
    asked = time.perf_counter()
  seconds = asked - begin
  record = {
    "step_ms": step_ms or None,
    "hosts": hosts,
    "samples": seen,
    "samples_per_second": seen / seconds,
    "cpu_ms": 1000 * (_cpu() - begin_cpu) / (seen + first),
    "workers": config.data.num_workers,
    "threads": config.data.num_threads,
  }
  if step_ms:
    record["input_wait"] = waited / seconds
  return record


def run(
  session: Session,
  *,
  samples: int,
  peers: Sequence[str],
  turns: int,
  hosts: int = 1,
  step_ms: float = 0.0,
) -> dict[str, list[dict[str, Any]]]:
  """All measurements: tables "stages", "pipeline" and "pictures".

  Args:
    session: of the run.
    samples: to read.
    peers: names in `data_peers.PEERS`.
    turns: of each implementation.
    hosts: that share the global batch.
    step_ms: time of a training step.
  """
  stages = measure_stages(session, samples)
  pipeline = [measure_pipeline(session, samples, hosts=hosts)]
  if step_ms:
    pipeline.append(
      measure_pipeline(session, samples, hosts=hosts, step_ms=step_ms)
    )
  megabytes = stages[-1]["kilobytes"] / 1000
  for record in pipeline:
    record["megabytes_per_second"] = record["samples_per_second"] * megabytes
  pictures = data_peers.pictures(session, min(samples, data_peers.MOST))
  compared: list[dict[str, Any]] = []
  if pictures:
    size = session.config.model.vision.image_size
    compared = data_peers.compare(pictures, size, peers=peers, turns=turns)
  return {"stages": stages, "pipeline": pipeline, "pictures": compared}
