"""Metrics of a run: `<workdir>/metrics.jsonl`, TensorBoard, W&B.

One line of `metrics.jsonl` per call of `write`: `step` (0-based index of the
step the values belong to), `time` (seconds since the epoch) and the values;
a line of `event` has `event` and `message` instead. JSON knows no NaN or
infinity: those are the strings "nan", "inf" and "-inf", which `read_metrics`
turns back into numbers. A resumed run first drops the lines of the steps that
it will run again, and lines are stored before a checkpoint that covers their
steps, so every step is there exactly once.

The names `report` draws are in its docstring. TensorBoard goes through
tensorboardX and so needs no TensorFlow.
"""

from __future__ import annotations

import importlib
import json
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from mico_jax import extras, files
from mico_jax.config import ConfigError, TrainConfig
from mico_jax.json_text import dumps, plain
from mico_jax.run.monitor import progress
from mico_jax.run.monitor.tensorboard import (
  add_settings,
  open_events,
  tag_of,
)

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
  return _read(epath.Path(workdir) / METRICS_FILE)


def _read(path: Any) -> list[dict[str, Any]]:
  try:
    texts = files.read_text(path).splitlines()
  except FileNotFoundError:
    return []
  lines = []
  for text in texts:
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
  """Adds lines to a file; a store without append is rewritten at times."""

  def __init__(self, path: Any, start_step: int):
    self._path = path
    self._local = files.is_local(path)
    self._last_flush = time.monotonic()
    kept = [dumps(x) for x in _read(path) if x["step"] < start_step]
    self._data = bytearray("".join(f"{x}\n" for x in kept).encode())
    self._size = len(self._data)  # of a local file
    files.write_bytes(path, bytes(self._data))
    self._dirty = False
    if self._local:
      self._data.clear()

  def add(self, line: Mapping[str, Any]) -> None:
    data = f"{dumps(line)}\n".encode()
    self._dirty = True
    if self._local:
      self._size = files.append(self._path, data, self._size)
      return
    self._data += data
    if time.monotonic() - self._last_flush > _REMOTE_FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    if self._dirty and self._local:
      files.append(self._path, b"", self._size, sync=True)
    elif self._dirty:
      files.write_bytes(self._path, bytes(self._data))
      self._last_flush = time.monotonic()
    self._dirty = False


def check_packages(config: TrainConfig) -> None:
  """Checks that what the run is to be logged with can be imported.

  Raises:
    ConfigError: saying what to install.
  """
  if not config.wandb:
    return
  try:
    importlib.import_module("wandb")
  except ImportError:
    raise ConfigError(
      "train.wandb=True needs the package wandb: "
      f"{extras.install('wandb')}, or set train.wandb=False."
    ) from None


def _wandb(workdir: Any, name: str, config: Mapping[str, Any]) -> Any:
  check_packages(TrainConfig(wandb=True))
  wandb = importlib.import_module("wandb")
  # The id is that of the workdir, so that a resumed run continues its curves.
  path = workdir / "wandb_id"
  try:
    run_id = files.read_text(path).strip()
  except FileNotFoundError:
    run_id = secrets.token_hex(4)
    files.write_text(path, run_id)
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
    files.make_folder(folder)
    if wandb:
      self._wandb = _wandb(folder, name, config or {})
    self._lines = _JsonLines(folder / METRICS_FILE, start_step)
    if tensorboard and files.is_local(folder):
      self._tensorboard = open_events(folder, start_step)
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
      for name, value in scalars.items():
        # tensorboardX warns of each value that is not finite.
        if math.isfinite(value):
          self._tensorboard.add_scalar(tag_of(name), value, step)
    if self._wandb is not None:
      self._wandb.log(scalars, step=step)

  def event(self, step: int, name: str, message: str, **fields: Any) -> None:
    """Writes an event, such as an alarm, and prints it on stderr.

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

  @property
  def shows_pictures(self) -> bool:
    """Whether `outcome` has a place for pictures."""
    return self._tensorboard is not None or self._wandb is not None

  def outcome(
    self,
    step: int,
    results: Mapping[str, float],
    *,
    settings: Mapping[str, Any],
    pictures: Mapping[str, UInt8[np.ndarray, "Y X 3"]],
  ) -> None:
    """Writes the final evaluation to TensorBoard and W&B.

    `metrics.jsonl` does without it: `evaluation.json` tells more.

    Args:
      step: index of the last step.
      results: by name; they become the scalars "final/<name>".
      settings: of the run, for the page HPARAMS of TensorBoard; W&B has the
        whole config.
      pictures: by name.
    """
    named = {
      f"final/{name}": float(value)
      for name, value in results.items()
      if math.isfinite(value)
    }
    if self._tensorboard is not None:
      for name, value in named.items():
        self._tensorboard.add_scalar(tag_of(name), value, step)
      for name, picture in pictures.items():
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")
      tags = {tag_of(name): value for name, value in named.items()}
      add_settings(self._tensorboard, settings, tags)
    if self._wandb is not None:
      image = importlib.import_module("wandb").Image
      shown = {name: image(picture) for name, picture in pictures.items()}
      self._wandb.log({**named, **shown}, step=step)

  def flush(self) -> None:
    """Brings everything to disk or to the store."""
    if self._lines is not None:
      self._lines.flush()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes; later calls do nothing."""
    if self._lines is not None:
      self._lines.flush()
      self._lines = None
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None
    if self._wandb is not None:
      self._wandb.finish()
      self._wandb = None
