"""Kinetics-700: the action in a clip of ten seconds, fine-tuned.

    mico-jax pretrain --config perception/kinetics700:COPY --init CKPT

COPY is the folder of the official files, train.csv and val.csv with the clips
in any folder, or one with a folder of shards for each of train and val. Clips
that are gone are left out of training, and counted where val is measured.
Behind commas: the vocabulary of the checkpoint, and its preset. Measured: top-1
accuracy on val; the paper says 0.916.

The paper names the data set, its settings and "accuracy". Chosen here: the
edition of 2019, eight frames in training and testing, one from each eighth of
the clip, one view, a linear head on the mean of the class tokens of the frames.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.evaluation.protocols import training
from mico_jax.train import perception

SET = perception.PaperSet(
  name="kinetics700",
  title="Kinetics-700",
  group="v",
  objective="classification",
  metric="top-1 accuracy",
  result="classifier/v/accuracy",
  published=0.916,
  samples=545_317,
  choice="edition of 2019; 8 frames, one view; linear head",
  epochs=20,
  frames=8,
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "COPY,VOCABULARY,PRESET"; see `perception.parse`."""
  copy, vocabulary, preset = perception.parse(argument, SET.name)
  classes = training.training_classes(SET.name, copy)
  config = perception.make(
    SET,
    training.training_sources(SET.name, copy),
    vocabulary=vocabulary,
    preset=preset,
    learned={"targets": {"v": {"classes": classes}}},
    augment=perception.PHOTOS,
  )
  return c.to_config_dict(config)
