"""Hyperspectral pixels: up to 256 bands, tokens of 4, patches of 7 x 7."""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.spectra import Spectra

SPECTRA = Spectra("hyperspectral", slots=256, group=4, side=7)
HYPERSPECTRAL = Modality(
  key=SPECTRA.key,
  letter="y",
  kind="knowledge",
  spec=SPECTRA.spec,
  decode=SPECTRA.decode,
  modes=SPECTRA.modes(),
  default_mode="linear",
  example=SPECTRA.example,
  embedding=SPECTRA.embedding,
  context_type="hyperspectral",
  draw=SPECTRA.draw,
  notes="channels are wavelengths in nm; cube.npz:name@ROW,COLUMN",
  **SPECTRA.stated,
)
