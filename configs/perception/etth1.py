r"""Load and oil temperature of a transformer (ETTh1): 336 hours to the next 96.

    cd FOLDER  # with ETTh1.csv
    python -m mico_jax.data.parts windows ETTh1.csv --media timeseries \
        --length 432 --rows train=0:8640 --rows val=8304:11520 \
        --rows test=11184:14400 > etth1.jsonl
    mico-jax pretrain --config perception/etth1:FOLDER/etth1.jsonl

A line of the manifest is a window of the table, 336 hours and the 96 behind
them: {"timeseries": "ETTh1.csv:rows[0:432]", "split": "train"}. The usual
split by rows: training 0-8640, validation 8640-11520, test 11520-14400, where
the first windows of validation and test begin 336 rows before. Behind a comma
"validation": settings are chosen on the split "val".
"""

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
# Mean and deviation of the columns in the training rows.
MEAN = (7.937742, 2.021039, 5.079771, 0.746186, 2.781762, 0.788453, 17.128262)
SCALE = (5.812749, 2.090105, 5.518794, 1.926379, 1.023523, 0.630237, 9.176491)


def get_config(
  argument: str = "etth1.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of etth1.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  manifest, validation = small_sets.parse(argument)
  data = small_sets.sources(
    manifest,
    captions={},
    stated={"channels": {"timeseries": ",".join(COLUMNS)}},
  )
  if validation:
    data["test"] = dataclasses.replace(data["test"], split="val")
  window = {"context": 336, "horizon": 96, "mean": MEAN, "scale": SCALE}
  config = small_sets.make(
    "etth1",
    data,
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=32,
      depth=2,
      num_heads=4,
      mlp_dim=64,
    ),
    heads=("t", "r"),
    frame_table={"timeseries": 1},
    groups={},
    inputs={"timeseries": c.InputConfig(mode="plain")},
    batch_size=64,
    steps=300,
    learning_rate=1e-3,
    learned={"forecasting": {"windows": {"r": window}}},
    evaluation={"suite": "forecasting", "probe_source": ""},
  )
  return c.to_config_dict(config)
