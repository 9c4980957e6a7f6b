"""Solubility of molecules in water (ESOL), from their graphs.

    pip install -e '.[molecules]'
    mico-jax pretrain --config perception/esol:PATH/esol_molecules.csv

The table is read as it is: name, smiles, log_solubility (decadic logarithm of
mol/l) and split. A head learns the solubility by its squared error, in standard
deviations of the training part; there are no captions. Behind a comma
"validation": settings are chosen on a fifth of the training molecules.
J. Delaney, J. Chem. Inf. Comput. Sci. 44 (2004); MoleculeNet, arXiv:1703.00564.
"""

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

TARGET = "log_solubility"


def get_config(
  argument: str = "esol_molecules.csv",
) -> ml_collections.ConfigDict:
  """Config for a table in the form of esol.

  Args:
    argument: "TABLE" or "TABLE,validation".
  """
  data = small_sets.sources(
    argument,
    captions={},
    by="",
    stated={"fields": {"graph": "smiles"}, "units": {"graph": "smiles"}},
  )
  table = {
    name: dataclasses.replace(source, kind="csv")
    for name, source in data.items()
  }
  config = small_sets.make(
    "esol",
    table,
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=32,
      depth=3,
      num_heads=2,
      mlp_dim=64,
    ),
    heads=("t", "g"),
    frame_table={"graph": 1},
    groups={},
    inputs={"graph": c.InputConfig(mode="molecule_flip")},
    batch_size=16,
    steps=2400,
    learning_rate=2e-3,
    optimizer={"ema": 0.99, "weight_decay": 0.1},
    learned={
      "regression": {"targets": {"g": {"fields": (TARGET,), "kind": "number"}}}
    },
    evaluation={"suite": "heads", "probe_source": ""},
  )
  return c.to_config_dict(config)
