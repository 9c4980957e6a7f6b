"""Texts that groups are compared with: captions, questions, answers."""

from __future__ import annotations

from mico_jax.modalities.base import ArraySpec, Modality
from mico_jax.modalities.words import decode_text, example_text, text_modes

TEXT = Modality(
  key="text",
  letter="t",
  kind="interface",
  spec=ArraySpec(("L",), "int32", "token id", (0, 2**31 - 1)),
  decode=decode_text,
  modes=text_modes(),
  default_mode="plain",
  example=example_text,
  embedding="text",
  pooling="text",
  text_kinds=("default", "omni"),  # a query may be as long as either
  extensions=(".txt",),
  notes="which caption kind a group reads: mico_jax.data.language",
)
