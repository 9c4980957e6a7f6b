"""What a run writes down: `<workdir>/metrics.jsonl`, TensorBoard, W&B.

One line of `metrics.jsonl` per call of `write`: `step` (0-based index of the
step the values belong to), `time` (seconds since the epoch) and the values;
a line of `event` has `event` and `message` instead. JSON knows no NaN or
infinity: those are the texts "nan", "inf" and "-inf", and `read_metrics` turns
them back. A resumed run first drops the lines of the steps it will run again,
so every step is there once.

The names `report` draws are in its docstring. TensorBoard goes through
tensorboardX and so needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mico_jax.config import ConfigError
from mico_jax.json_text import dumps, plain
from mico_jax.run import progress

METRICS_FILE = "metrics.jsonl"
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_REMOTE_FLUSH_SECONDS = 60.0


def _special(value: Any) -> Any:
  return _SPECIAL.get(value, value) if isinstance(value, str) else value


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The lines of a run's `metrics.jsonl`, in order.

  A last line that a kill cut short is left out.

  Args:
    workdir: folder of the run.

  Returns:
    One dict per line; an empty list if there is no such file.
  """
  path = epath.Path(workdir) / METRICS_FILE
  return _read(path) if path.exists() else []


def _read(path: Any) -> list[dict[str, Any]]:
  lines = []
  for text in path.read_text().splitlines():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      continue
    if isinstance(line, dict) and "step" in line:
      keep = ("event", "message", "task")
      lines.append(
        {k: v if k in keep else _special(v) for k, v in line.items()}
      )
  return lines


class _JsonLines:
  """Appends lines to a file; a store without append is rewritten at times."""

  def __init__(self, path: Any, start_step: int):
    self._path = path
    self._local = "://" not in str(path)
    self._last_flush = time.monotonic()
    self._dirty = False
    kept = (
      [x for x in _read(path) if x["step"] < start_step]
      if (path.exists())
      else []
    )
    self._lines = [self._dump(x) for x in kept]
    self._rewrite()
    self._file = path.open("a") if self._local else None

  @staticmethod
  def _dump(line: Mapping[str, Any]) -> str:
    return dumps(line)

  def _rewrite(self) -> None:
    text = "".join(f"{x}\n" for x in self._lines)
    if self._local:
      part = self._path.with_name(self._path.name + ".part")
      part.write_text(text)
      part.replace(self._path)
      self._lines = []
    else:
      self._path.write_text(text)
    self._dirty = False

  def add(self, line: Mapping[str, Any]) -> None:
    text = self._dump(line)
    if self._file is not None:
      self._file.write(text + "\n")
      self._file.flush()
      return
    self._lines.append(text)
    self._dirty = True
    if time.monotonic() - self._last_flush > _REMOTE_FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    if self._file is None and self._dirty:
      self._rewrite()
      self._last_flush = time.monotonic()

  def close(self) -> None:
    self.flush()
    if self._file is not None:
      self._file.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Hides torch: tensorboardX imports it where installed, for nothing."""
  hide = "torch" not in sys.modules
  if hide:
    sys.modules["torch"] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    if hide:
      del sys.modules["torch"]


def _tensorboard(workdir: Any, start_step: int) -> Any:
  with _without_torch():
    import tensorboardX
  # Steps from `start_step` on are written again; TensorBoard drops the old.
  purge = start_step if start_step else None
  return tensorboardX.SummaryWriter(
    str(workdir / "tensorboard"), purge_step=purge
  )


def _wandb(workdir: Any, name: str, config: Mapping[str, Any]) -> Any:
  try:
    wandb = importlib.import_module("wandb")
  except ImportError:
    raise ConfigError(
      "train.wandb=True needs the package wandb: pip install "
      "'mico-jax[wandb]', or set train.wandb=False."
    ) from None
  # The id is that of the workdir, so that a resumed run continues its curves.
  path = workdir / "wandb_id"
  run_id = (
    path.read_text().strip() if path.exists() else wandb.util.generate_id()
  )
  path.write_text(run_id)
  return wandb.init(
    project="mico_jax",
    name=name or workdir.name,
    id=run_id,
    resume="allow",
    dir=str(workdir),
    config=dict(config),
  )


class MetricsWriter:
  """Writes values and events of a run to every place that is switched on.

  Only the main process writes: in the others (`enabled=False`) each call does
  nothing.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start_step: int = 0,
    tensorboard: bool = True,
    wandb: bool = False,
    name: str = "",
    config: Mapping[str, Any] | None = None,
    enabled: bool = True,
  ):
    """Opens the files; drops lines of steps that will be run again.

    Args:
      workdir: folder of the run; made if absent. Local or remote.
      start_step: index of the first step that will run (0: a fresh run).
      tensorboard: write event files to `<workdir>/tensorboard`; local folders
        only.
      wandb: log to Weights & Biases.
      name: of the run, for W&B.
      config: the resolved config, for W&B.
      enabled: false in all processes but the first.

    Raises:
      ConfigError: if `wandb` is asked for and not installed.
    """
    self._lines: _JsonLines | None = None
    self._tensorboard: Any = None
    self._wandb: Any = None
    if not enabled:
      return
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if wandb:
      self._wandb = _wandb(folder, name, config or {})
    self._lines = _JsonLines(folder / METRICS_FILE, start_step)
    if tensorboard and "://" not in str(folder):
      self._tensorboard = _tensorboard(folder, start_step)
    elif tensorboard:
      progress.say(f"no TensorBoard files: {folder} is not a local folder.")

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def write(
    self,
    step: int,
    values: Mapping[str, Any],
    *,
    task: str = "",
    prefix: str = "",
  ) -> None:
    """Writes the values of a step.

    Args:
      step: its index.
      values: scalars (Python, NumPy or JAX); non-finite ones are kept as such.
      task: name of the step's task, if the run has several.
      prefix: put in front of each name with a slash, e.g. "eval".
    """
    if self._lines is None:
      return
    named = {
      f"{prefix}/{k}" if prefix else k: plain(v) for k, v in values.items()
    }
    line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
    if task:
      line["task"] = task
    self._lines.add({**line, **named})
    scalars = {
      k: float(_special(v))
      for k, v in named.items()
      if isinstance(_special(v), int | float)
    }
    if self._tensorboard is not None:
      for key, value in scalars.items():
        # TensorBoard cannot draw them, and tensorboardX warns of each.
        if math.isfinite(value):
          self._tensorboard.add_scalar(key, value, step)
    if self._wandb is not None:
      self._wandb.log(scalars, step=step)

  def event(self, step: int, name: str, message: str, **fields: Any) -> None:
    """Writes an event, such as an alarm, and says it on stderr.

    Args:
      step: index of the step it belongs to.
      name: short name, e.g. "collapse", "nonfinite", "resume".
      message: one line for people.
      **fields: further plain values.
    """
    if self._lines is None:
      return
    progress.say(message)
    line = {
      "step": int(step),
      "time": round(time.time(), 3),
      "event": name,
      "message": message,
    }
    self._lines.add({**line, **fields})
    if self._tensorboard is not None:
      self._tensorboard.add_text(f"event/{name}", message, step)

  def flush(self) -> None:
    """Brings everything to disk."""
    if self._lines is not None:
      self._lines.flush()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes; later calls do nothing."""
    if self._lines is not None:
      self._lines.close()
      self._lines = None
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None
    if self._wandb is not None:
      self._wandb.finish()
      self._wandb = None
