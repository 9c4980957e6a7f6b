"""Golden cases: folders of stored numbers, and checks against them.

A case is a function of a `Folder` that yields one `Check` per stored output, in
any order. It takes every size, count and setting from the folder, so that it
works on folders of the same form that it has never seen. Where the library
lacks something, it raises `Unsupported` (the whole case) or yields a `Missing`
(one output). To add a case, write the function and its line in `CASES`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.interop.files import safetensors_file
from mico_jax.modalities import spatial

OUTPUT_LIMIT = 5e-5  # encoder outputs and logits
MEL_LIMIT = 3e-3  # worst of log-mel values; their mean has a limit of its own
MEL_MEAN_LIMIT = 1e-5
LOSS_LIMIT = 2e-5  # losses and gradients
WEIGHT_LIMIT = 3e-5  # weights after optimiser steps
# What makes a folder a case -> the case, where the file itself names none.
CONFIGS: Mapping[str, str] = {
  "config.json": "",
  "cases.json": "",
  "layout.json": "ckpt_layout",
}


class Unsupported(Exception):
  """The library lacks what a case needs; the message names the feature."""


@dataclasses.dataclass(frozen=True)
class Check:
  """One comparison.

  Attributes:
    name: of the stored output.
    got: ours.
    want: the stored one.
    limit: largest absolute difference allowed; 0 asks for equality.
  """

  name: str
  got: Any
  want: Any
  limit: float = OUTPUT_LIMIT

  @functools.cached_property
  def difference(self) -> tuple[float, float]:
    """Largest absolute difference, and relative to the largest value.

    Infinite where shapes differ or a value is not finite on one side only.
    """
    got, want = np.asarray(self.got), np.asarray(self.want)
    if got.shape != want.shape:
      return np.inf, np.inf
    if got.dtype.kind in "USO" or want.dtype.kind in "USO":
      return (0.0, 0.0) if np.array_equal(got, want) else (np.inf, np.inf)
    if want.size == 0:
      return 0.0, 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
      absolute = np.where(same, 0.0, np.abs(got - want))
    absolute = np.where(np.isnan(absolute), np.inf, absolute)
    worst = float(np.max(absolute))
    scale = float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0))
    return worst, worst / scale if scale else worst

  @property
  def passed(self) -> bool:
    """Whether the difference is within the limit."""
    return self.difference[0] <= self.limit

  def line(self) -> str:
    """One line of the report."""
    absolute, relative = self.difference
    state = "ok  " if self.passed else "FAIL"
    detail = ""
    if np.shape(self.got) != np.shape(self.want):
      detail = f"  shape {np.shape(self.got)} != {np.shape(self.want)}"
    return (
      f"  {state} {self.name:<48} max_abs {absolute:.2e}  max_rel "
      f"{relative:.2e}  limit {self.limit:.0e}{detail}"
    )


def log_mels(
  name: str, got: Any, want: Float[np.ndarray, "..."], scale: float = 1.0
) -> Iterator[Check]:
  """The worst and the mean difference of log-mel values.

  Args:
    name: of the stored output.
    got: ours.
    want: the stored ones.
    scale: by which the values were divided, 2 `data.audio.std` in slices; the
      limits, which are of plain log-mel values, are divided as well. Weak bins
      of both sides add up, which is what the third more is for; a wrong mean or
      deviation shows in the mean difference.
  """
  yield Check(name, got, want, MEL_LIMIT * (4 / 3 if scale != 1 else 1) / scale)
  if np.shape(got) == np.shape(want):
    mean = np.abs(np.asarray(got, np.float64) - want).mean()
    yield Check(f"{name} (mean difference)", mean, 0.0, MEL_MEAN_LIMIT / scale)


@dataclasses.dataclass(frozen=True)
class Missing:
  """A stored output that needs what the library lacks."""

  name: str
  feature: str


@dataclasses.dataclass(frozen=True)
class Folder:
  """A stored case."""

  path: pathlib.Path

  @functools.cached_property
  def config(self) -> Mapping[str, Any]:
    """The case's `config.json`, or what stands for it (see `CONFIGS`)."""
    for name, case in CONFIGS.items():
      if (self.path / name).is_file():
        stored = json.loads((self.path / name).read_text(encoding="utf-8"))
        return {"case": case, **stored}
    raise ValueError(f"{self.path}: holds none of {', '.join(CONFIGS)}.")

  @property
  def case(self) -> str:
    """The name of the case."""
    return str(self.config.get("case") or self.path.name)

  def tensors(self, name: str) -> dict[str, np.ndarray]:
    """The tensors of `<name>.safetensors`; ids and masks become int32."""
    stored = safetensors_file.read(self.path / f"{name}.safetensors")
    return {
      k: v.astype(np.int32) if v.dtype == np.int64 else v
      for k, v in stored.items()
    }

  def has(self, name: str) -> bool:
    """Whether `<name>.safetensors` exists."""
    return (self.path / f"{name}.safetensors").is_file()

  @functools.cached_property
  def weights(self) -> dict[str, np.ndarray]:
    """The stored weights under their official names."""
    return self.tensors("weights")

  @functools.cached_property
  def inputs(self) -> dict[str, np.ndarray]:
    """The stored inputs."""
    return self.tensors("inputs")

  @functools.cached_property
  def outputs(self) -> dict[str, np.ndarray]:
    """The stored outputs of the float32 run."""
    return self.tensors("outputs")


Case = Callable[[Folder], Iterator[Check | Missing]]


def case_named(name: str, known: Collection[str]) -> str:
  """The case that a name begins with, "vision_clip_b" -> "vision_clip".

  What follows must stand apart: by a sign, or as a number behind a letter. The
  longest case counts; "" if there is none.
  """

  def begins(case: str) -> bool:
    rest = name[len(case) :]
    if not name.startswith(case) or not rest[:1].isalnum():
      return name.startswith(case)
    return rest[0].isdigit() and case[-1].isalpha()

  return max(filter(begins, known), key=len, default="")


# Beginning of an encoder's type in the original -> its pixels' statistics, and
# the mode of images that has them.
PIXELS: Mapping[str, tuple[spatial.Stats, str]] = {
  "clip": (spatial.CLIP, "mico_demo_clip"),
  "evaclip": (spatial.CLIP, "mico_demo_clip"),
  "swin": (spatial.IMAGENET, "mico_demo"),
}


def pixels_of(kind: str) -> tuple[spatial.Stats, str] | None:
  """Statistics and mode of an encoder's type; None: of an unknown one."""
  case = case_named(kind, PIXELS)
  return PIXELS[case] if case else None
