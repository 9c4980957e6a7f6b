"""Rows of tables with named columns, which `data.columns` describes."""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.tables import Tables

TABLES = Tables("tabular", slots=64, bins=16, rows=1024)
TABULAR = Modality(
  key=TABLES.key,
  letter="k",
  kind="knowledge",
  spec=TABLES.spec,
  decode=TABLES.decode,
  modes=TABLES.modes(),
  default_mode="plain",
  example=TABLES.example,
  embedding=TABLES.embedding,
  context_type="tabular",
  objects=True,
  check_columns=TABLES.check,
  draw=TABLES.draw,
  notes="names, quantiles and categories of columns: `data.columns`",
)
