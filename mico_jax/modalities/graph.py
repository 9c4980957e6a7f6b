"""Graphs of up to 64 nodes and 128 edges: molecules, or any features."""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.graphs import Graphs

GRAPHS = Graphs("graph", nodes=64, edges=128, features=32, k=16)
GRAPH = Modality(
  key=GRAPHS.key,
  letter="g",
  kind="knowledge",
  spec=GRAPHS.spec,
  decode=GRAPHS.decode,
  modes=GRAPHS.modes(),
  default_mode="flip",
  example=GRAPHS.example,
  embedding=GRAPHS.embedding,
  context_type="graph",
  objects=True,
  draw=GRAPHS.draw,
  notes="graph:smiles:TEXT; channels name features, edge.NAME those of edges",
  **GRAPHS.stated,
)
