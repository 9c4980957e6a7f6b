"""NYU-D: the kind of room from its depth alone, fine-tuned.

    mico-jax pretrain --config perception/nyu_d_scenes:COPY --init CKPT

COPY is the folder of the official files, kv1/NYUdata of SUN RGB-D and
splits.mat, or one with a folder of shards for each of train and test. Behind
commas: the vocabulary of the checkpoint, and its preset. Measured: top-1
accuracy on the 654 test scenes; the paper says 0.846.

The paper names the data set and "scene accuracy". Chosen here: the split of
splits.mat (795 to train on), the nine most frequent kinds of rooms and a tenth
of all others, as ImageBind has them (arXiv:2305.05665), and raw depth in
metres. Stochastic depth is that of ViT-g at 0.25, where the paper has 0.2 to
0.3.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.evaluation.protocols import training
from mico_jax.train import perception

SET = perception.PaperSet(
  name="nyu_d_scenes",
  title="NYU-D",
  group="d",
  objective="classification",
  metric="top-1 accuracy of scenes",
  result="classifier/d/accuracy",
  published=0.846,
  samples=795,
  choice="splits.mat; nine kinds of rooms and all others; raw metric depth",
  epochs=20,
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
    learned={"targets": {"d": {"classes": classes}}},
    augment=perception.CROPS,
  )
  return c.to_config_dict(config)
