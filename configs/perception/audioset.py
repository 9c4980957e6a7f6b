"""AudioSet-2M: all sounds of a clip of ten seconds, fine-tuned.

    mico-jax pretrain --config perception/audioset:COPY --init CKPT

COPY is the folder of the official files, the three lists of segments and
class_labels_indices.csv with sound in any folder, or one with a folder of
shards for each of balanced_train, unbalanced_train and eval. Segments that are
gone are left out of training, and counted where eval is measured. Behind
commas: the vocabulary of the checkpoint, and its preset. Measured: mean average
precision over the classes of eval; the paper says 0.505.

The paper names the data set, its settings and "mAP". Chosen here: balanced and
unbalanced segments together, each once an epoch; sigmoid and binary
cross-entropy of 527 classes; four slices of each clip, joined by their mean.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.evaluation.protocols import training
from mico_jax.train import perception

SET = perception.PaperSet(
  name="audioset",
  title="AudioSet-2M",
  group="a",
  objective="classification",
  metric="mean average precision over classes",
  result="classifier/a/mAP",
  published=0.505,
  samples=2_063_949,
  choice="balanced and unbalanced segments; binary cross-entropy; 4 slices",
  frames=4,
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "COPY,VOCABULARY,PRESET"; see `perception.parse`."""
  copy, vocabulary, preset = perception.parse(argument, SET.name)
  target = {
    "fields": ("labels",),
    "kind": "classes",
    "classes": training.training_classes(SET.name, copy),
  }
  config = perception.make(
    SET,
    training.training_sources(SET.name, copy),
    vocabulary=vocabulary,
    preset=preset,
    learned={"targets": {"a": target}},
  )
  return c.to_config_dict(config)
