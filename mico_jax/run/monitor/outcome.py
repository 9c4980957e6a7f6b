"""What a finished run leaves to look at: its report, TensorBoard and W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from mico_jax import config as config_lib
from mico_jax import failures
from mico_jax.config import Config
from mico_jax.evaluation import Result
from mico_jax.run.monitor import report
from mico_jax.run.monitor.metric_log import MetricsWriter
from mico_jax.run.monitor.progress import say


def settings_of(config: Config) -> dict[str, bool | int | float | str]:
  """The fields of a config that differ from their defaults, by path.

  Args:
    config: of the run.

  Returns:
    Plain values only; what a run names, such as its tasks, has no default.
  """
  default = {path: value for path, value, _ in config_lib.leaves(Config())}
  return {
    path: value
    for path, value, _ in config_lib.leaves(config)
    if isinstance(value, bool | int | float | str)
    and (path not in default or default[path] != value)
  }


def write_outcome(
  writer: MetricsWriter,
  workdir: epath.PathLike,
  config: Config,
  step: int,
  results: Sequence[Result],
) -> str:
  """Draws the report, and hands numbers and pictures to the writer.

  A picture that cannot be drawn does not fail the run, whose checkpoint and
  numbers are there; it is said.

  Args:
    writer: of the run.
    workdir: of the run, with the files of its evaluation.
    config: of the run.
    step: index of the last step.
    results: of the evaluation; none: it had none.

  Returns:
    Path of the report; "": there is none.
  """
  pictures: dict[str, Any] = {}
  path = ""
  writer.flush()
  try:
    path = str(report.write_report(workdir))
    if results and writer.shows_pictures:
      pictures = report.pictures(workdir)
  except Exception as error:  # of matplotlib, a font, a store, a file's content
    say(
      f"no report was drawn: {failures.describe(error)}; "
      f"`mico-jax report {workdir} --out report.png` draws it again."
    )
  if results:
    numbers = {result.name: result.value for result in results}
    settings = settings_of(config)
    writer.outcome(step, numbers, settings=settings, pictures=pictures)
  return path
