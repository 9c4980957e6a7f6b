"""Stages of a build: the one place that lists them.

To add one, write `mico_jax/data/build/stages/<name>.py` with a subclass of
`Stage` and add its line here; `--stages`, `--set`, messages and
`mico-jax data build --help` find it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mico_jax import config as config_lib
from mico_jax.config import ConfigError
from mico_jax.data.build.stages.audio import Audio
from mico_jax.data.build.stages.base import BatchStage, Stage
from mico_jax.data.build.stages.captions import AudioCaptions, VisionCaptions
from mico_jax.data.build.stages.clips import Clips
from mico_jax.data.build.stages.frames import Frames
from mico_jax.data.build.stages.h264 import H264
from mico_jax.data.build.stages.maps import Depth, Normal
from mico_jax.data.build.stages.omni import Omni
from mico_jax.data.build.stages.shots import Shots
from mico_jax.data.build.stages.subtitles import Subtitles
from mico_jax.printing import known_names

__all__ = ["STAGES", "BatchStage", "Stage", "make_stages"]

STAGES: dict[str, type[Stage]] = {
  stage.name: stage
  for stage in (
    Shots,
    Clips,
    Frames,
    H264,
    Audio,
    Subtitles,
    VisionCaptions,
    AudioCaptions,
    Omni,
    Depth,
    Normal,
  )
}


def make_stages(
  names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> list[Stage]:
  """The stages of a build, in order.

  Args:
    names: keys of `STAGES`.
    options: stage -> option -> value.

  Raises:
    ConfigError: for an unknown or repeated stage, options of a stage that is
      not named, an unknown option or a wrong value.
  """
  for name in names:
    if name not in STAGES:
      raise ConfigError(f"no stage {name!r}; {known_names(name, STAGES)}")
  if len(set(names)) < len(names):
    raise ConfigError(f"stages={','.join(names)}: each may stand once.")
  for name in options:
    if name not in names:
      raise ConfigError(
        f"--set {name}....: no stage {name!r} in --stages "
        f"{','.join(names) or '(none)'}."
      )
  stages = []
  for name in names:
    kind = STAGES[name]
    try:
      values = config_lib.from_dict(options.get(name, {}), kind.Options)
    except ConfigError as error:
      raise ConfigError(f"--set {name}: {error}") from None
    stages.append(kind(values))
  return stages
