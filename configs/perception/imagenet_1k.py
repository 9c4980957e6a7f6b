"""ImageNet-1k: the class of a photo, fine-tuned from a checkpoint.

    mico-jax pretrain --config perception/imagenet_1k:COPY --init CKPT

COPY is the folder of the official files, train/WNID/*.JPEG, val/WNID/*.JPEG and
LOC_synset_mapping.txt, or one with a folder of shards for each of train and
val (`mico_jax.evaluation.protocols.training`). Behind commas: the vocabulary of
the checkpoint, and its preset. Measured: top-1 accuracy on the 50,000 pictures
of val; the paper says 0.898.

The paper names the data set, its settings and "accuracy". Chosen here: a linear
head on the class token, RandAugment for AutoAugment, no mixup and cutmix (none
for ViT-g in the paper either), 224 pixels as they are pretrained.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.evaluation.protocols import training
from mico_jax.train import perception

SET = perception.PaperSet(
  name="imagenet_1k",
  title="ImageNet-1k",
  group="i",
  objective="classification",
  metric="top-1 accuracy",
  result="classifier/i/accuracy",
  published=0.898,
  samples=1_281_167,
  choice="linear head; RandAugment for AutoAugment; 224 pixels",
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
    learned={"targets": {"i": {"classes": classes}}},
    augment=perception.PHOTOS,
  )
  return c.to_config_dict(config)
