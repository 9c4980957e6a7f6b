"""Time series of several variables, with dates: 512 steps, in tokens of 16.

Steps are as long as the source has them (an hour, a day); up to 16 variables.
Sources name the columns that are read, so that a variable keeps its place, and
a model reads the columns that its sources name alike. Dates become sines and
cosines of the time of day, week and year beside the values.

Open: sources of one run may name different columns, and steps of different
lengths; nothing tells the model which it sees.
"""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.series import Series

SERIES = Series("timeseries", slots=16, length=512, window=16, calendar=True)
TIMESERIES = Modality(
  key=SERIES.key,
  letter="r",
  kind="knowledge",
  spec=SERIES.spec("deviations, with dates and flags"),
  decode=SERIES.decode,
  modes=SERIES.modes(plain="values as they are, up to 256; with dates"),
  default_mode="standardised",
  example=SERIES.example,
  embedding=SERIES.embedding,
  context_type="timeseries",
  draw=SERIES.draw,
  notes="steps of any length, not resampled; columns are chosen by `channels`",
  **SERIES.stated,
)
