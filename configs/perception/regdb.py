"""RegDB: people in visible pictures found among thermal ones, and back.

    mico-jax data build --protocol regdb --from COPY
    mico-jax pretrain --config perception/regdb:COPY --init CKPT

COPY is the folder of the official files, Visible/PERSON/*.bmp, Thermal/ and the
lists of idx/. Behind commas: the vocabulary of the checkpoint, and its preset.
Measured: rank-1 accuracy from visible to thermal pictures; "re-id/h->i/R@1" is
the way back. The paper's table says 0.803 of SYSU-MM01, its appendix of RegDB.

The paper names the data set and "R@1". Chosen here, from Ye et al., AAAI 2018:
206 people to learn from and 206 that are searched, all pictures of the other
kind being the gallery; one of the ten divisions, so that a figure to publish is
the mean of ten runs (`--set regdb.trial=2`). Triplets and cross-entropy of
identities, over both kinds of pictures together, which are squeezed to squares.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import perception

SET = perception.PaperSet(
  name="regdb",
  title="RegDB",
  group="i:h",
  objective="reidentification",
  metric="rank-1 accuracy, visible to thermal",
  result="re-id/i->h/R@1",
  published=0.803,
  samples=4_120,
  choice="one of ten divisions; triplets and cross-entropy of identities",
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "FOLDER,VOCABULARY,PRESET"; see `perception.parse`."""
  folder, vocabulary, preset = perception.parse(argument, SET.name)
  sources, _ = perception.built_sources(
    SET.name, folder, units={"thermal": "picture"}
  )
  config = perception.make(
    SET,
    sources,
    vocabulary=vocabulary,
    preset=preset,
    learned={"targets": {"i:h": {"fields": ("identity",)}}},
    inputs={"image": c.InputConfig(mode="plain_clip")},
    augment={"flip": {}, **perception.ERASING},
  )
  return c.to_config_dict(config)
