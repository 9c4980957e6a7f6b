"""Progress of a loop on stderr: a bar in a terminal, a line now and then else.

Results go to stdout and progress to stderr, so that output can be piped. The
rate and the ETA come from a window of recent steps, hence the compilation of
the first step does not spoil them.
"""

from __future__ import annotations

import collections
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import tqdm

from mico_jax.printing import escaped_page


@runtime_checkable
class Stream(Protocol):
  """A stream that shows progress: stderr, a file, a notebook's output."""

  def write(self, text: str, /) -> Any:
    """Takes a text."""

  def flush(self) -> Any:
    """Shows it."""

  def isatty(self) -> bool:
    """True for a terminal."""
    ...


def say(text: str, *, stream: Stream | None = None) -> None:
  """Writes a line to stderr without tearing a progress bar apart.

  Args:
    text: the line, without its end.
    stream: where to; default stderr.
  """
  tqdm.tqdm.write(escaped_page(text), file=stream or sys.stderr)


def format_seconds(seconds: float) -> str:
  """`h:mm:ss` or `m:ss` of a duration in seconds; "?" if it is not known."""
  if not math.isfinite(seconds) or seconds < 0:
    return "?"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02d}:{rest:02d}"
  return f"{minutes}:{rest:02d}"


def format_value(value: float) -> str:
  """A number in at most nine characters."""
  if not math.isfinite(value):
    return str(value)
  if value == int(value) and abs(value) < 1e6:
    return str(int(value))
  if 1e-3 <= abs(value) < 1e4:
    return f"{value:.4g}"
  return f"{value:.2e}"


class Progress:
  """Progress bar with ETA, samples per second and loss terms.

  In a terminal a `tqdm` bar; elsewhere (a log file, CI) one line at most every
  `interval` seconds, and one at the end.

  Attributes:
    total: number of steps of the whole run.
    step: steps done, those before a resume included.
    samples_per_second: over the window; 0 until two updates were seen.
    steps_per_second: over the window; 0 until two updates were seen.
  """

  def __init__(
    self,
    total: int,
    *,
    start: int = 0,
    label: str = "",
    interval: float = 10.0,
    window: int = 50,
    stream: Stream | None = None,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the display.

    Args:
      total: number of steps of the whole run.
      start: steps that were done before (resume).
      label: short text in front.
      interval: seconds between two lines outside a terminal.
      window: updates the rate is averaged over.
      stream: where to; default stderr.
      enabled: false shows nothing (processes other than the first) but still
        measures.
      clock: seconds, monotonic; for tests.
    """
    self.total = total
    self.step = start
    self.samples_per_second = 0.0
    self.steps_per_second = 0.0
    self._label = label
    self._interval = interval
    self._stream = stream or sys.stderr
    self._enabled = enabled
    self._clock = clock
    self._start_time = clock()
    self._last_line = self._start_time
    self._samples = 0
    self._terms = ""
    self._shown_step = -1
    # (time, steps done, samples done)
    self._marks: collections.deque[tuple[float, int, int]] = collections.deque(
      maxlen=window + 1
    )
    self._bar: tqdm.tqdm | None = None
    if enabled and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=start,
        desc=label or None,
        file=self._stream,
        dynamic_ncols=True,
        bar_format="{l_bar}{bar:20}| {n_fmt}/{total_fmt} {postfix}",
      )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @property
  def eta(self) -> float:
    """Seconds to the end at the present rate; infinite while unknown."""
    if not self.steps_per_second:
      return math.inf
    return (self.total - self.step) / self.steps_per_second

  def update(
    self, step: int, *, samples: int = 0, terms: Mapping[str, float] = {}
  ) -> None:
    """Counts steps and samples as done, and shows it.

    Args:
      step: steps done since the beginning of the run.
      samples: samples consumed since the last update.
      terms: values to show, such as the loss terms; kept until others come.
    """
    now = self._clock()
    self._samples += samples
    self._marks.append((now, step, self._samples))
    advance, self.step = step - self.step, step
    first = self._marks[0]
    if now > first[0]:
      self.steps_per_second = (step - first[1]) / (now - first[0])
      self.samples_per_second = (self._samples - first[2]) / (now - first[0])
    self.show(terms)
    if self._bar is not None:
      self._bar.update(advance)

  def show(self, terms: Mapping[str, float] = {}) -> None:
    """Shows the state, with new values if there are any; counts nothing."""
    if terms:
      self._terms = " ".join(f"{k} {format_value(v)}" for k, v in terms.items())
    if self._bar is not None:
      self._bar.set_postfix_str(self._status(), refresh=False)
    elif self._enabled:
      now = self._clock()
      if now - self._last_line >= self._interval:
        self._line(now)

  def close(self) -> None:
    """Leaves the last state on the screen."""
    if self._bar is not None:
      self._bar.refresh()
      self._bar.close()
      self._bar = None
    elif self._enabled and self._shown_step != self.step and self._marks:
      self._line(self._clock())
    self._enabled = False

  def _status(self) -> str:
    parts = []
    if self.step < self.total:
      parts.append(f"eta {format_seconds(self.eta)}")
    else:
      parts.append(f"in {format_seconds(self._clock() - self._start_time)}")
    if self.steps_per_second:
      parts.append(f"{format_value(self.steps_per_second)} steps/s")
    if self.samples_per_second:
      parts.append(f"{format_value(self.samples_per_second)} samples/s")
    if self._terms:
      parts.append(self._terms)
    return " | ".join(parts)

  def _line(self, now: float) -> None:
    self._last_line = now
    self._shown_step = self.step
    share = 100 * self.step // max(self.total, 1)
    label = f"{self._label} " if self._label else ""
    self._stream.write(
      f"{label}step {self.step}/{self.total} {share}% | {self._status()}\n"
    )
    self._stream.flush()
