"""Global temperature of 3,850 stations: 48 hours to the next 24.

    mico-jax data build --protocol global_temperature --from COPY
    mico-jax pretrain --config perception/global_temperature:COPY --init CKPT

COPY is the folder of the official files of Corrformer,
temp_global_hourly_{train,val,test}.npy. Behind commas: the vocabulary of the
checkpoint, and its preset. Measured: mean squared error of the test part in
squared Celsius, and "forecasting/r/MAE" beside it. The paper says 7.834 and
calls it an MAE; the 7.602 that it compares with is the MSE of UniRepLKNet.

The paper names the data set. Chosen here: hours and split of Corrformer (Nature
Machine Intelligence 5, 2023); each station is a series of its own, with the
time of day and year, where the published models see all stations at once;
windows begin at every 24th hour, where published errors are of every hour. The
part "val" is for choosing settings: `--config.data.sources.test.split=val`.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.data.build.sets.global_temperature import (
  COLUMN,
  CONTEXT,
  HORIZON,
)
from mico_jax.train import perception

SET = perception.PaperSet(
  name="global_temperature",
  title="Global temperature",
  group="r",
  objective="forecasting",
  metric="mean squared error in squared Celsius",
  result="forecasting/r/MSE",
  published=7.834,
  samples=1_959_650,
  choice="stations by themselves; windows at every 24th hour; MSE and MAE",
  lower_is_better=True,
)


def paper() -> perception.PaperSet:
  """The row of the paper's table, for the reference page."""
  return SET


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Config of "FOLDER,VOCABULARY,PRESET"; see `perception.parse`."""
  folder, vocabulary, preset = perception.parse(argument, SET.name)
  sources, note = perception.built_sources(
    SET.name, folder, channels={"timeseries": COLUMN}
  )
  # Errors are of Celsius as they are.
  window = {"context": CONTEXT, "horizon": HORIZON, "mean": (0.0,),
            "scale": (1.0,)}  # fmt: skip
  config = perception.make(
    SET,
    sources,
    vocabulary=vocabulary,
    preset=preset,
    samples=note["samples"]["train"],
    learned={"windows": {"r": window}},
    inputs={"timeseries": c.InputConfig(mode="plain")},
  )
  return c.to_config_dict(config)
