"""SYSU-MM01: people in near infrared found among visible pictures.

    mico-jax data build --protocol sysu_mm01 --from COPY
    mico-jax pretrain --config perception/sysu_mm01:COPY --init CKPT

COPY is the folder of the official files, cam1/PERSON/*.jpg to cam6/ and
exp/{train,val,test}_id.txt. Behind commas: the vocabulary of the checkpoint,
and its preset. Measured: rank-1 accuracy from infrared to visible pictures,
all search, single shot; the paper says 0.803, and its appendix that this is
RegDB (`perception/regdb`).

The paper names the data set and "R@1". Chosen here, from Wu et al., ICCV 2017:
395 people to learn from and 96 that are searched; each of ten galleries holds
one picture of each person by each visible camera, drawn by a seed and not by
the list of the publisher; camera 2 is left out where camera 3 asks. Triplets
and cross-entropy of identities, over both kinds of pictures together, which are
squeezed to squares.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import perception

SET = perception.PaperSet(
  name="sysu_mm01",
  title="SYSU-MM01",
  group="i:h",
  objective="reidentification",
  metric="rank-1 accuracy, infrared to visible, all search, single shot",
  result="re-id/h->i/R@1",
  published=0.803,
  samples=34_167,
  choice="ten galleries by a seed; triplets and cross-entropy of identities",
)
GALLERIES = {"camera": "camera", "place": "place", "shots": 1, "trials": 10}


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
    options={"reidentification": GALLERIES},
  )
  return c.to_config_dict(config)
