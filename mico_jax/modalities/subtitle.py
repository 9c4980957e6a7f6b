"""Subtitles: a text in the context of a group, encoded by the text tower."""

from __future__ import annotations

from mico_jax.modalities.base import ArraySpec, Caption, Modality
from mico_jax.modalities.words import decode_text, example_text, text_modes

SUBTITLE = Modality(
  key="subtitle",
  letter="s",
  kind="interface",
  spec=ArraySpec(("L",), "int32", "token id", (0, 2**31 - 1)),
  decode=decode_text,
  modes=text_modes(),
  default_mode="plain",
  example=example_text,
  embedding="text",
  context_type="subtitle",
  pooling="text",
  caption=Caption("subtitle", fields=("subtitle", "transcript")),
  text_kinds=("subtitle",),
  notes="tokenised by the pipeline; padded positions are masked",
)
