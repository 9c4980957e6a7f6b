"""The batches of a run, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mico_jax.data.bad_samples import BadSamples
from mico_jax.data.pipeline import Pipeline
from mico_jax.run.setup import Session
from mico_jax.train.step import Program


class Batches:
  """Iterates (step, program, batch) from a step on.

  A stage's pipeline is opened when its first step is due.
  """

  def __init__(
    self,
    session: Session,
    start: int,
    open_pipeline: Callable[[Session, int, int], Pipeline],
  ):
    """Opens the pipeline of the first stage.

    Args:
      session: of the run.
      start: first step.
      open_pipeline: (parts of a stage, first step, one past the last) ->
        pipeline.
    """
    self._open = open_pipeline
    self._stages = [part for part in session.stages if part[0].end > start]
    self._stages = self._stages or [session.stages[-1]]
    self._begin(start)

  def _begin(self, start: int) -> None:
    stage, session = self._stages[0]
    self._pipeline = self._open(session, start, stage.end)

  @property
  def bad_samples(self) -> BadSamples:
    """Of this process's rows so far."""
    return self._pipeline.bad_samples

  def sample_ids(self, step: int) -> list[str]:
    """Names of the global batch of a step of this stage."""
    return self._pipeline.sample_ids(step)

  def __iter__(self) -> Iterator[tuple[int, Program, dict[str, Any]]]:
    """Yields until the last step."""
    while True:
      stage, order = self._stages[0][0], self._pipeline.order
      for step, task, batch in self._pipeline:
        length = order.text_length(step)
        yield step, Program(stage.name, task, length), batch
      self._stages = self._stages[1:]
      if not self._stages:
        return
      self._begin(stage.end)
