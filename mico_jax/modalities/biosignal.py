"""Electrical signals of heart and brain at 100 Hz, frames of 10.24 s.

Channels are the twelve leads of an ECG, one electrode of unknown place ("ECG"),
and the electrodes of the 10-20 system against the source's reference. Beats cut
to a number of samples have no rate; state one that all beats then share.

Open: bipolar derivations (C3-A2), and more electrodes than those of 10-20.
"""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.series import Series

_LEADS = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6 ECG"
_FRONT = "Fp1 Fp2 F7 F3 Fz F4 F8 T3 C3 Cz C4 T4"
_BACK = "T5 P3 Pz P4 T6 O1 O2"
SERIES = Series(
  "biosignal",
  slots=32,
  length=1024,
  window=16,
  names=(*_LEADS.split(), *_FRONT.split(), *_BACK.split()),
  aliases={"t7": "T3", "t8": "T4", "p7": "T5", "p8": "T6"},
  rate=100.0,
  units={"millivolt": 1, "microvolt": 1e-3, "volt": 1e3, "standardised": 1},
  unit_names={"mV": "millivolt", "uV": "microvolt", "µV": "microvolt"},
)
BIOSIGNAL = Modality(
  key=SERIES.key,
  letter="b",
  kind="knowledge",
  spec=SERIES.spec("deviations, with flags"),
  decode=SERIES.decode,
  modes=SERIES.modes(plain=""),
  default_mode="standardised",
  example=SERIES.example,
  embedding=SERIES.embedding,
  context_type="biosignal",
  draw=SERIES.draw,
  extensions=(".edf", ".bdf"),
  notes="any rate, resampled to 100 Hz; leads and electrodes by their names",
  **SERIES.stated,
)
