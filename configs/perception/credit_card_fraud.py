"""Credit card fraud: 29 numbers of a payment, of which one in 580 is fraud.

    mico-jax data build --protocol credit_card_fraud --from COPY
    mico-jax pretrain --config perception/credit_card_fraud:COPY --init CKPT

COPY is the folder of creditcard.csv. Behind commas: the vocabulary of the
checkpoint, and its preset. Measured: F1 of fraud; the paper says 0.913.

The paper says "fraud" and "F1", not which table. Chosen here: the table of ULB
(Dal Pozzolo et al., IEEE SSCI 2015), which most work takes; the first four
fifths in time to learn from; fraud is what the head finds more likely than not;
no class is given more weight. Figures of random splits and of tables that were
balanced before do not compare.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.data.build.sets.credit_card_fraud import NAMES
from mico_jax.train import perception

SET = perception.PaperSet(
  name="credit_card_fraud",
  title="Credit card fraud",
  group="k",
  objective="classification",
  metric="F1 of fraud",
  result="classifier/k/F1",
  published=0.913,
  samples=227_846,
  choice="table of ULB; the last fifth in time is measured",
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "FOLDER,VOCABULARY,PRESET"; see `perception.parse`."""
  folder, vocabulary, preset = perception.parse(argument, SET.name)
  sources, note = perception.built_sources(SET.name, folder)
  target = {"fields": ("class_name",), "classes": tuple(NAMES.values())}
  config = perception.make(
    SET,
    sources,
    vocabulary=vocabulary,
    preset=preset,
    learned={"targets": {"k": target}},
    inputs={"tabular": c.InputConfig(mode="hide")},
    columns={"tabular": note["columns"]},
  )
  return c.to_config_dict(config)
