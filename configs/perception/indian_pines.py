"""Indian Pines: the kind of ground of a pixel, from 200 bands around it.

    mico-jax data build --protocol indian_pines --from COPY
    mico-jax pretrain --config perception/indian_pines:COPY --init CKPT

COPY is the folder of Indian_pines_corrected.mat and Indian_pines_gt.mat. Behind
commas: the vocabulary of the checkpoint, and its preset. Measured: overall
accuracy, the share of right pixels among those not learned from; the paper says
0.985.

The paper names the data set and "OA", neither split nor surroundings. Chosen
here: a tenth of each kind of ground, drawn by seed 0, to learn from, a usual
choice; 7 x 7 pixels around each, of which some belong to training
(`mico_jax.data.build.sets.indian_pines`); counts without a calibration, on a
logarithmic scale.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.data.build.sets.indian_pines import CLASSES, WAVELENGTHS
from mico_jax.train import perception

SET = perception.PaperSet(
  name="indian_pines",
  title="Indian Pines",
  group="y",
  objective="classification",
  metric="overall accuracy of pixels",
  result="classifier/y/accuracy",
  published=0.985,
  samples=1_031,
  choice="10% of each kind by seed 0; 7 x 7 pixels",
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "FOLDER,VOCABULARY,PRESET"; see `perception.parse`."""
  folder, vocabulary, preset = perception.parse(argument, SET.name)
  sources, note = perception.built_sources(
    SET.name,
    folder,
    units={"hyperspectral": "counts"},
    channels={"hyperspectral": ",".join(map(str, WAVELENGTHS))},
  )
  target = {"fields": ("class_name",), "classes": CLASSES}
  config = perception.make(
    SET,
    sources,
    vocabulary=vocabulary,
    preset=preset,
    samples=note["samples"]["train"],
    learned={"targets": {"y": target}},
    inputs={"hyperspectral": c.InputConfig(mode="logarithmic_jitter")},
  )
  return c.to_config_dict(config)
