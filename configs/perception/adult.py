"""Income above or below 50,000 dollars from a census (UCI Adult).

    cd FOLDER  # with adult_train.csv and adult_test.csv
    for SPLIT in train test; do python -m mico_jax.data.parts rows \
        adult_$SPLIT.csv --media tabular --field income --split $SPLIT; done \
        > adult.jsonl
    mico-jax pretrain --config perception/adult:FOLDER/adult.jsonl

A line names a row: {"tabular": "adult_train.csv:rows[0:1]", "income": "<=50K",
"split": "train"}. Quantiles and categories of the columns are those of
adult_train.csv, beside the manifest; the income is not read. There are no
captions: a head learns the class alone. Behind a comma "validation": settings
are chosen on a fifth of the training rows (whose quantiles are known then).
B. Becker and R. Kohavi, UCI Machine Learning Repository, 1996.
"""

import os

import ml_collections

from mico_jax import config as c
from mico_jax.data.columns import columns_of
from mico_jax.train import small_sets

TARGET = "income"


def get_config(
  argument: str = "adult.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of adult, beside adult_train.csv.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  manifest, _ = small_sets.parse(argument)
  table = os.path.join(os.path.dirname(manifest), "adult_train.csv")
  config = small_sets.make(
    "adult",
    small_sets.sources(argument, captions={}, by=TARGET),
    columns={"tabular": columns_of(table, unread=(TARGET,))},
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=32,
      depth=2,
      num_heads=4,
      mlp_dim=64,
    ),
    heads=("t", "k"),
    frame_table={"tabular": 1},
    groups={},
    inputs={"tabular": c.InputConfig(mode="hide")},
    batch_size=128,
    steps=600,
    learning_rate=1e-3,
    learned={"classification": {"targets": {"k": {"fields": (TARGET,)}}}},
    evaluation={"suite": "heads", "probe_source": ""},
  )
  return c.to_config_dict(config)
