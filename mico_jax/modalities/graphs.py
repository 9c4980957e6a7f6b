"""Graphs: a token for each node and each edge, placed by the Laplacian.

A decoded graph is float32 [tokens, 2 + features + 2 k]: kind (0 none, 1 a node,
2 an edge), the weight of an edge, features, and two places: of a node its own
twice, of an edge those of its ends. Nodes come first, then edges.

Rules, since features have one meaning only:

- Unit `smiles`: a molecule, written as SMILES in place of a file's name; its
  features are those of `mico_jax.modalities.molecules`, a bond is one edge, and
  atoms stand in canonical order, so that how it is written does not count.
- Unit `features`: a file with any features, named by `data.sources.*.channels`,
  of edges as "edge.NAME"; all sources of a run name the same.
- Arrays [N, N] hold weights of edges, 0 where there is none; nothing is known
  of nodes.
- A graph without nodes, with more nodes or edges than there is room for, or
  with edges that name no node is an error. Nodes without edges are tokens like
  others.

Places are eigenvectors of the normalised Laplacian of the graph without
directions and loops, those of the smallest eigenvalues. Eigenvectors of equal
eigenvalues are any basis; a term of 1e-4 by the order of nodes makes it one.
The largest entry is positive; modes that flip draw signs, in training only.

Source: TokenGT, arXiv:2207.02505, sections 2 and 4; signs, arXiv:2003.00982.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
)
from mico_jax.modalities.graphs_file import Graph, read_graph
from mico_jax.modalities.molecules import read_smiles
from mico_jax.modalities.spatial import modes

NODE, EDGE = 1, 2  # kinds of tokens
EDGES = "edge."  # before names of features of edges
MOST = 1e4  # magnitude of a feature
_GOLDEN = 0.6180339887498949  # its multiples are spread evenly modulo 1
_TERM = 1e-4  # of the order of nodes, in eigenvalues


def valid_tokens(frames: Any, *, xp: Any) -> Any:
  """Nodes and edges that there are, bool [B, tokens]."""
  del xp
  return frames[:, :, 0] > 0.5


def laplacian_places(
  count: int, edges: Int[np.ndarray, "2 E"], k: int
) -> Float[np.ndarray, "N K"]:
  """Eigenvectors of the `k` smallest eigenvalues, of mean square 1.

  Args:
    count: of nodes; those beyond their number are 0.
    edges: ends of each.
    k: of eigenvectors.
  """
  joined = np.zeros((count, count))
  joined[edges[0], edges[1]] = joined[edges[1], edges[0]] = 1
  np.fill_diagonal(joined, 0)
  degree = joined.sum(axis=1)
  scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
  matrix = np.diag((degree > 0).astype(float))
  matrix -= scale[:, None] * joined * scale
  matrix += np.diag(_TERM * (np.arange(1, count + 1) * _GOLDEN % 1))
  _, vectors = np.linalg.eigh(matrix)
  vectors = vectors[:, :k]
  size = np.abs(vectors)
  # Of entries that are nearly the largest, the first says the sign.
  first = np.argmax(size > (1 - 1e-3) * size.max(axis=0), axis=0)
  vectors = vectors * np.sign(vectors[first, np.arange(vectors.shape[1])])
  out = np.zeros((count, k))
  out[:, : vectors.shape[1]] = vectors * np.sqrt(count)
  return out


@dataclasses.dataclass(frozen=True)
class Graphs:
  """What a record says of its graphs.

  Attributes:
    key: of the modality, for messages.
    nodes: most nodes.
    edges: most edges.
    features: most of a node, and of an edge.
    k: eigenvectors of a place.
  """

  key: str
  nodes: int = 64
  edges: int = 128
  features: int = 32
  k: int = 16

  @property
  def spec(self) -> ArraySpec:
    """The array that is sent."""
    unit = "kind, weight, features, places"
    return ArraySpec(("T", "N", "C"), "float32", unit, (-MOST, MOST))

  @property
  def stated(self) -> dict[str, Any]:
    """Fields of the record: what sources state of their graphs."""
    return {
      "units": ("smiles", "features"),
      "native_modes": {"smiles": "molecule_flip", "features": "flip"},
      "inline": ("smiles",),
      "named": True,
      "needs_channels": ("features",),
    }

  @property
  def embedding(self) -> CustomEmbedding:
    """Tokens of nodes and edges, see `mico_jax.layers.graph_embed`."""
    return CustomEmbedding(
      "mico_jax.layers.graph_embed:GraphEmbed",
      frame=(self.nodes + self.edges, 2 + self.features + 2 * self.k),
      tokens=self.nodes + self.edges,
      torch="mico_jax.interop.torch_template.graph_embed:GraphEmbed",
      options={"nodes": self.nodes, "features": self.features},
      valid=valid_tokens,
    )

  def decode(self, raw: Any, geometry: Geometry) -> Float[np.ndarray, "L C"]:
    """The tokens of a graph.

    Args:
      raw: content of a file, SMILES, or an array [N, N].
      geometry: with the unit and names that are stated.

    Raises:
      DecodeError: for what cannot be read, is not stated, or has no room.
    """
    if isinstance(raw, np.ndarray):
      graph = _weighted(raw)
    elif geometry.unit == "smiles":
      if geometry.channels:
        raise DecodeError(
          f"{self.key}: molecules have their own features; state no channels."
        )
      graph = read_smiles(raw)
    elif geometry.unit == "features":
      graph = read_graph(raw)
      self._check_names(graph, geometry.channels)
    else:
      raise DecodeError(
        f"{self.key} without a unit; write {self.key}:smiles:TEXT or "
        f"{self.key}:features@@NAME,{EDGES}NAME:FILE, or state it in "
        "data.sources.*.units."
      )
    self._check(graph)
    return self._tokens(graph)

  def _check_names(self, graph: Graph, names: tuple[str, ...]) -> None:
    """Raises DecodeError unless all features of a graph have a name."""
    if not names:
      raise DecodeError(
        f"{self.key}: state the names of its features, such as mass,"
        f"{EDGES}length, in data.sources.*.channels."
      )
    edges = sum(name.startswith(EDGES) for name in names)
    there = (graph.nodes.shape[1], graph.features.shape[1])
    if there != (len(names) - edges, edges):
      raise DecodeError(
        f"{there[0]} features of nodes and {there[1]} of edges; stated are "
        f"{len(names) - edges} and {edges}: {', '.join(names)[:200]}."
      )

  def _check(self, graph: Graph) -> None:
    """Raises DecodeError for graphs that are none or have no room."""
    count, edges = len(graph.nodes), graph.edges.shape[1]
    if not count:
      raise DecodeError(f"this {self.key} has no nodes.")
    if count > self.nodes or edges > self.edges:
      raise DecodeError(
        f"{count} nodes and {edges} edges; there is room for {self.nodes} and "
        f"{self.edges}."
      )
    if edges and not (graph.edges.min() >= 0 and graph.edges.max() < count):
      wrong = graph.edges[(graph.edges < 0) | (graph.edges >= count)]
      raise DecodeError(
        f"an edge names node {wrong[0]}; there are {count}, from 0."
      )
    for what, values in (
      ("nodes", graph.nodes),
      ("edges", graph.features),
      ("edges", graph.weights[:, None]),
    ):
      if values.shape[1] > self.features:
        raise DecodeError(
          f"{values.shape[1]} features of {what}; there is room for "
          f"{self.features}."
        )
      if not (np.abs(values) <= MOST).all():  # also where it is not a number
        raise DecodeError(
          f"features of {what} are not finite or beyond {MOST:g}; scale them."
        )

  def _tokens(self, graph: Graph) -> Float[np.ndarray, "L C"]:
    count, edges = len(graph.nodes), graph.edges.shape[1]
    out = np.zeros(self.embedding.frame, np.float32)
    places = laplacian_places(count, graph.edges, self.k)
    end = 2 + self.features
    out[:count, 0] = NODE
    out[:count, 2 : 2 + graph.nodes.shape[1]] = graph.nodes
    out[:count, end:] = np.concatenate([places, places], axis=1)
    rows = slice(self.nodes, self.nodes + edges)
    out[rows, 0], out[rows, 1] = EDGE, graph.weights
    out[rows, 2 : 2 + graph.features.shape[1]] = graph.features
    ends = [places[graph.edges[0]], places[graph.edges[1]]]
    out[rows, end:] = np.concatenate(ends, axis=1)
    return out

  def example(self, geometry: Geometry, seed: int) -> Float[np.ndarray, "N N"]:
    """A ring with a chord and weights."""
    del geometry
    count = 6 + seed % 4
    out = np.zeros((count, count), np.float32)
    at = np.arange(count)
    out[at, (at + 1) % count] = 1 + 0.1 * at
    out[0, 3] = 0.5
    return out

  def modes(self) -> dict[str, Mode]:
    """The modes that every graph has."""
    flips = "signs of places drawn"
    return modes(
      self._mode("plain", "any features", "features"),
      self._mode("flip", f"plain, {flips}", "features", eval_mode="plain"),
      self._mode("molecule", "atoms and bonds", "smiles"),
      self._mode(
        *("molecule_flip", f"molecule, {flips}", "smiles"),
        eval_mode="molecule",
      ),
    )

  def _mode(
    self, name: str, about: str, unit: str, *, eval_mode: str = ""
  ) -> Mode:
    def host(
      x: Float[np.ndarray, "..."],
      geometry: Geometry,
      rng: np.random.Generator | None = None,
    ) -> Float[np.ndarray, "T L C"]:
      if geometry.unit not in ("", unit):
        raise DecodeError(
          f"mode {name!r} takes {unit}, not {geometry.unit}; choose another in "
          f"data.inputs.{self.key}.mode."
        )
      if x.shape != self.embedding.frame:  # an example
        x = self.decode(x, geometry)
      if eval_mode and rng is not None:
        signs = np.tile(rng.choice([-1.0, 1.0], self.k), 2)
        x = x.copy()
        x[:, -2 * self.k :] *= signs
      return np.repeat(x[None], geometry.frames, axis=0)

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return array.astype(xp.float32)

    return Mode(name, host, to_pixels, eval_mode, about, unit=unit)

  def draw(self, frame: Float[np.ndarray, "L C"]) -> np.ndarray:
    """A picture: a column for each token, features and places downwards."""
    return np.clip(frame[frame[:, 0] > 0.5], -3, 3).T


def _weighted(array: Shaped[np.ndarray, "..."]) -> Graph:
  """The graph of an array of weights."""
  shape = list(array.shape)
  square = array.ndim == 2 and shape[0] == shape[1]
  if not square or array.dtype.kind not in "iufb":
    raise DecodeError(
      f"a graph of {array.dtype}, shape {shape}; expected the weights of its "
      "edges, [N, N]."
    )
  edges = np.array(np.nonzero(array))
  weights = array[edges[0], edges[1]].astype(np.float64)
  nothing = np.zeros((len(array), 0))
  return Graph(nothing, edges, np.zeros((len(weights), 0)), weights)
