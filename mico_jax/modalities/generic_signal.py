"""Any other sensor's array [samples, channels]: 1024 samples of up to 8."""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.series import Series

SERIES = Series("signal", slots=8, length=1024, window=16)
SIGNAL = Modality(
  key=SERIES.key,
  letter="u",
  kind="knowledge",
  spec=SERIES.spec("deviations, with flags"),
  decode=SERIES.decode,
  modes=SERIES.modes(plain="values as they are, up to 256"),
  default_mode="standardised",
  example=SERIES.example,
  embedding=SERIES.embedding,
  context_type="signal",
  draw=SERIES.draw,
  notes="no unit and no rate: samples are taken as they are",
  **SERIES.stated,
)
