"""X-rays of 8 to 16 bits; bright is dense, as MONOCHROME2 shows it.

A DICOM file says its photometric interpretation and bits (extra `medical`);
PNG and TIFF have them stated: "monochrome2,16". Stored values are used: windows
for display (VOI LUT) are not applied, and padding is no reading.
"""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.dicom import read_dicom
from mico_jax.modalities.maps import Maps, Unit
from mico_jax.modalities.spatial import modes, shift, squash

MAPS = Maps(
  "xray",
  units={
    f"monochrome{kind},{bits}": Unit(full=2**bits - 1, inverted=kind == 1)
    for kind in (2, 1)
    for bits in (16, 14, 12, 10, 8)
  },
  reader=read_dicom,
)
_UNIT = "monochrome2,16"
XRAY = Modality(
  key=MAPS.key,
  letter="x",
  kind="knowledge",
  spec=MAPS.spec("share of the full range"),
  decode=MAPS.decode,
  modes=modes(
    MAPS.mode("plain", squash, "0..1, and standardised per map", unit=_UNIT),
    MAPS.mode(
      *("shift", shift, "plain after a small shift and zoom; no flip"),
      unit=_UNIT,
      eval_mode="plain",
    ),
  ),
  default_mode="plain",
  example=MAPS.example,
  context_type="xray",
  extensions=(".dcm",),
  units=tuple(MAPS.units),
  in_file=True,
  notes="no flip: left and right differ; xray:monochrome2,16:FILE.png",
)
