"""Ego4D: what its wearer does, from the motion of a camera on the head.

    mico-jax data build --protocol ego4d_imu --from COPY
    mico-jax pretrain --config perception/ego4d_imu:COPY --init CKPT

COPY is the folder v2/ of the official files, with ego4d.json and imu/*.csv.
Behind commas: the vocabulary of the checkpoint, and its preset. Measured:
accuracy of the scenario of windows of five seconds; the paper says 0.772.

The paper names "Ego4D IMU" and "accuracy", neither the labels nor the split.
Chosen here, after ImageBind (arXiv:2305.05665): scenarios of whole videos and
windows of five seconds; a split by video, by the hash of its name; videos of
several scenarios left out. A window of one video is like others of it, so
accuracies of other splits do not compare.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import perception

SET = perception.PaperSet(
  name="ego4d_imu",
  title="Ego4D IMU",
  group="m",
  objective="classification",
  metric="accuracy of scenarios",
  result="classifier/m/accuracy",
  published=0.772,
  samples=0,
  choice="scenarios of videos, windows of 5 s, split by video",
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "FOLDER,VOCABULARY,PRESET"; see `perception.parse`.

  Samples are those of the manifest, as nobody publishes their number.
  """
  folder, vocabulary, preset = perception.parse(argument, SET.name)
  sources, note = perception.built_sources(
    SET.name,
    folder,
    units={"imu": "m/s2,rad/s"},
    rates={"imu": 200.0},
  )
  target = {"fields": ("scenario",), "classes": tuple(note["scenarios"])}
  config = perception.make(
    SET,
    sources,
    vocabulary=vocabulary,
    preset=preset,
    samples=note["samples"]["train"],
    learned={"targets": {"m": target}},
    inputs={"imu": c.InputConfig(mode="jitter")},
  )
  return c.to_config_dict(config)
