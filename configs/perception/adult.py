r"""Income above or below 50,000 dollars from a census (UCI Adult).

    cd FOLDER  # with adult_train.csv and adult_test.csv
    python -m mico_jax.data.parts rows adult_train.csv --media tabular \
        --field income --split train > adult.jsonl
    python -m mico_jax.data.parts rows adult_test.csv --media tabular \
        --field income --split test >> adult.jsonl
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
  try:
    columns = columns_of(table, unread=(TARGET,))
  except (OSError, ValueError) as error:
    raise c.ConfigError(
      f"adult takes its columns from adult_train.csv beside the manifest: "
      f"{error}"
    ) from error
  config = small_sets.make(
    "adult",
    small_sets.sources(argument, captions={}, by=TARGET),
    columns={"tabular": columns},
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
    optimizer={"ema": 0.99},
    learned={"classification": {"targets": {"k": {"fields": (TARGET,)}}}},
    evaluation={"suite": "heads", "probe_source": ""},
  )
  return c.to_config_dict(config)
