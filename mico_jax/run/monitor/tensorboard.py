"""TensorBoard's events of a run, through tensorboardX: no TensorFlow.

Errors of its files do not end a run.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mico_jax import failures, files
from mico_jax.run.monitor import progress

_EVENTS_PREFIX = "mico_jax:"


class _PatientEvents:
  """A local file of TensorBoard's events, as tensorboardX writes to it.

  The writer thread of tensorboardX ends at the first error of its file, and
  later writes block for ever. Here a passing error is waited out, and any other
  ends the curves but not the run: `metrics.jsonl` has the same values.
  """

  def __init__(self, path: str):
    self._path = path.removeprefix(_EVENTS_PREFIX)
    self._data, self._size, self._ended = b"", 0, False

  def write(self, data: bytes) -> None:
    if not self._ended:
      self._data += data

  def flush(self) -> None:
    if self._ended or not self._data:
      return
    try:
      self._size = files.append(self._path, self._data, self._size)
    except OSError as error:
      self._ended = True
      progress.say(f"no further TensorBoard events: {failures.describe(error)}")
    self._data = b""

  def close(self) -> None:
    self.flush()


class _EventsFactory:
  """Opens the files of tensorboardX whose path has `_EVENTS_PREFIX`."""

  def directory_check(self, path: str) -> None:
    files.make_folder(path.removeprefix(_EVENTS_PREFIX))

  def open(self, path: str) -> _PatientEvents:
    return _PatientEvents(path)


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Hides torch, which tensorboardX would import without using it."""
  hide = "torch" not in sys.modules
  if hide:
    sys.modules["torch"] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    if hide:
      del sys.modules["torch"]


def open_events(workdir: epath.Path, start_step: int) -> Any:
  """A `tensorboardX.SummaryWriter` to `<workdir>/tensorboard`.

  Args:
    workdir: local folder of a run.
    start_step: first step that will be written; later ones of former files no
      longer count.
  """
  with _without_torch():
    import tensorboardX
    from tensorboardX import record_writer
  record_writer.register_writer_factory(
    _EVENTS_PREFIX.removesuffix(":"), _EventsFactory()
  )
  # Steps from `start_step` on are written again; TensorBoard drops the old.
  purge = start_step if start_step else None
  return tensorboardX.SummaryWriter(
    f"{_EVENTS_PREFIX}{workdir / 'tensorboard'}", purge_step=purge
  )


def tag_of(name: str) -> str:
  """A name in the characters that TensorBoard's tags have.

  Args:
    name: such as "retrieval/t->va/R@1".

  Returns:
    Such as "retrieval/t_to_va/R_at_1"; any other character becomes "_".
  """
  return re.sub(
    r"[^-/\w.]", "_", name.replace("->", "_to_").replace("@", "_at_")
  )


def add_settings(
  writer: Any, settings: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
  """Writes the settings of a run and the numbers to compare runs by.

  They go into the events of the run itself, which is one row of the page
  HPARAMS; `SummaryWriter.add_hparams` would open a folder of its own.

  Args:
    writer: from `open_events`.
    settings: plain values by name.
    metrics: by the tags under which they are written as scalars.
  """
  with _without_torch():
    from tensorboardX.summary import hparams
  for summary in hparams(dict(settings), dict(metrics)):
    writer.file_writer.add_summary(summary)
