"""Subtitles: text that belongs to the context, encoded by the text tower."""

from __future__ import annotations

from mico_jax.config import InputConfig
from mico_jax.modalities.base import ArraySpec, Modality
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
  extensions=(),
  default_input=InputConfig(),
  notes="tokenised by the pipeline; padded positions are masked",
)
