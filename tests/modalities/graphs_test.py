"""Graphs: places, features, molecules, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from mico_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  InputConfig,
  SourceConfig,
)
from mico_jax.data.input_checks import check_stated
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, DecodeError, FileSpec, Geometry
from mico_jax.modalities import file_spec as spec_of
from mico_jax.modalities.graphs import laplacian_places
from mico_jax.modalities.items import Item
from mico_jax.testing.tiny_checkpoint import tiny_config

GRAPH = MODALITIES["graph"]
NAMES = ("mass", "charge", "edge.length")
PLACES = slice(34, 66)


def stated(unit="features", names=NAMES, frames=1):
  names = names if unit == "features" else ()
  return Geometry(frames, 16, unit=unit, channels=names)


def contents(nodes=3, edges=((0, 1), (1, 2))):
  rng = np.random.default_rng(0)
  return {
    "node_features": rng.standard_normal((nodes, 2)).tolist(),
    "edge_index": np.array(edges).reshape(-1, 2).T.tolist(),
    "edge_features": rng.random((len(edges), 1)).tolist(),
  }


def as_json(**changes):
  return json.dumps(contents() | changes).encode()


def decode(raw, geometry=None):
  return GRAPH.decode(raw, geometry or stated())


def smiles(text):
  return decode(text.encode(), stated("smiles"))


def valid(x):
  return GRAPH.embedding.valid_tokens(x[None], xp=np)[0]


# ---------------------------------------------------------------------- places
def test_places_are_eigenvectors_of_the_laplacian():
  rng = np.random.default_rng(1)
  edges = np.array(np.nonzero(np.triu(rng.random((20, 20)) < 0.3, 1)))
  places = laplacian_places(20, edges, 16)
  joined = np.zeros((20, 20))
  joined[edges[0], edges[1]] = joined[edges[1], edges[0]] = 1
  degree = joined.sum(axis=1)
  matrix = np.eye(20) - joined / np.sqrt(np.outer(degree, degree))
  np.testing.assert_allclose(places.T @ places / 20, np.eye(16), atol=1e-9)
  values, _ = np.linalg.eigh(matrix)
  np.testing.assert_allclose(matrix @ places, places * values[:16], atol=2e-3)
  assert (np.abs(places).max(axis=0) - places.max(axis=0) < 1e-2).all()
  # Directions, loops and repeated edges say nothing of a place.
  more = np.concatenate([edges[::-1], edges, [[3], [3]]], axis=1)
  np.testing.assert_array_equal(laplacian_places(20, more, 16), places)
  ring = np.array([np.arange(6), np.roll(np.arange(6), -1)])
  one, two = (laplacian_places(6, ring, 16) for _ in range(2))
  np.testing.assert_array_equal(one, two)
  assert not one[:, 6:].any()


def test_signs_are_drawn_in_training_only():
  geometry = stated(frames=2)
  x = decode(as_json())
  for name in ("plain", "flip"):
    got = GRAPH.mode(name, train=False).host(x, geometry, None)
    np.testing.assert_array_equal(got, np.stack([x, x]))
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(8):
    flipped = GRAPH.modes["flip"].host(x, stated(), rng)[0]
    np.testing.assert_array_equal(flipped[:, :34], x[:, :34])
    np.testing.assert_array_equal(
      np.abs(flipped[:, PLACES]), np.abs(x[:, PLACES])
    )
    signs = flipped[0, PLACES][:3] * x[0, PLACES][:3]
    seen.add(tuple(np.sign(signs)))
    # An edge is flipped as its nodes are.
    np.testing.assert_array_equal(flipped[64, 34:50], flipped[0, 34:50])
    np.testing.assert_array_equal(flipped[64, 50:66], flipped[1, 34:50])
  assert len(seen) > 2


# ------------------------------------------------------------------- features
def test_nodes_and_edges_are_tokens():
  told = contents()
  x = decode(json.dumps(told).encode())
  assert valid(x).sum() == 5
  np.testing.assert_allclose(x[:3, 2:4], told["node_features"], rtol=1e-6)
  np.testing.assert_allclose(x[64:66, 2:3], told["edge_features"], rtol=1e-6)
  assert x[64:66, 1].tolist() == [1, 1]
  np.testing.assert_array_equal(x[65, 34:], [*x[1, 34:50], *x[2, 34:50]])
  out = io.BytesIO()
  np.savez(out, **{k: np.array(v) for k, v in told.items()})
  np.testing.assert_array_equal(decode(out.getvalue()), x)
  weights = np.array([[0, 0.5, 0], [0, 0, 2.0], [0, 0, 0]])
  bare = decode(weights)
  assert bare[64:66, 1].tolist() == [0.5, 2]
  np.testing.assert_array_equal(bare[:3, 34:], x[:3, 34:])
  alone = decode(as_json(edge_index=[[0], [1]], edge_features=[[1]]))
  assert valid(alone).sum() == 4  # a node without edges is one
  assert np.isfinite(alone).all()
  single = decode(np.zeros((1, 1)))
  assert valid(single).sum() == 1


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    (as_json(node_features=[], edge_index=[], edge_features=[]),
     "0 features of nodes|has no nodes"),
    (np.zeros((0, 0)), "this graph has no nodes"),
    (np.zeros((65, 65)), "65 nodes and 0 edges; there is room for 64 and 128"),
    (np.ones((12, 12)), "12 nodes and 144 edges"),
    (as_json(edge_index=[[0, 1], [1, 3]]), "an edge names node 3; there are 3"),
    (as_json(edge_index=[[0, -1], [1, 2]]), "an edge names node -1"),
    (as_json(edge_index=[[0, 1]]), "expected .* and"),
    (as_json(edge_index=[[0, 0.5], [1, 1]]), "holds fractions"),
    (as_json(edge_features=[[1]]), r"edge_features of shape \[1, 1\] for 2"),
    (as_json(edge_features=None), "2 features of nodes and 0 of edges"),
    (as_json(node_features=[[1], [2], [3]]), "1 features of nodes and 1"),
    (as_json(node_features=[[1, 2], [3]]), "no array of numbers"),
    (as_json(node_features=[[1, "a"]] * 3), "no array of numbers"),
    (as_json(node_features=[[1, 1e9]] * 3), "beyond 10000; scale them"),
    (as_json(node_features=[[1, float("nan")]] * 3), "not finite"),
    (b'{"edge_index": []}', "a graph without 'node_features'"),
    (b"[1]", "expected the file of a graph"),
    (b"", "not a readable graph"),
    (b"PK\x03\x04", "not a readable .npz"),
    (np.zeros((2, 3)), "expected the weights of its edges"),
    (3, "expected the file of a graph"),
  ],
)  # fmt: skip
def test_bad_graphs_are_refused(raw, words):
  with pytest.raises(DecodeError, match=words) as error:
    decode(raw)
  assert "\n" not in str(error.value)


def test_what_a_source_states():
  want = FileSpec("graph", "C/C=C/C", "smiles")
  assert spec_of("graph:smiles:C/C=C/C") == want
  named = spec_of("graph:features@@mass,edge.length:a/g.json")
  assert (named.unit, named.channels) == ("features", ("mass", "edge.length"))
  for geometry, words in (
    (stated(""), "graph without a unit"),
    (stated(names=()), "state the names of its features"),
    (stated(names=("mass",)), "stated are 1 and 0: mass"),
    (dataclasses.replace(stated("smiles"), channels=("a",)), "state no chan"),
  ):
    with pytest.raises(DecodeError, match=words):
      decode(as_json(), geometry)
  source = SourceConfig(kind="manifest", units={"graph": "features"})
  config = Config(data=DataConfig(sources={"s": source}))
  with pytest.raises(ConfigError, match="is empty; graph needs the names"):
    check_stated(config, "s", "graph")
  with pytest.raises(DecodeError, match=r"data\.inputs\.graph\.mode"):
    GRAPH.modes["molecule"].host(decode(as_json()), stated(), None)


# ------------------------------------------------------------------ molecules
def test_molecules_have_no_order():
  pytest.importorskip("rdkit")
  from mico_jax.modalities.molecules import ATOM, BOND

  x = smiles("CCO")
  np.testing.assert_array_equal(smiles("OCC"), x)
  benzoic = smiles("OC(=O)c1ccccc1")
  np.testing.assert_array_equal(smiles("c1ccccc1C(O)=O"), benzoic)
  assert valid(benzoic)[:64].sum() == valid(benzoic)[64:].sum() == 9
  atom = dict(zip(ATOM, benzoic[:9, 2:].T, strict=False))
  assert (atom["C"].sum(), atom["O"].sum(), atom["aromatic"].sum()) == (7, 2, 6)
  bond = dict(zip(BOND, benzoic[64:73, 2:].T, strict=False))
  assert [bond[k].sum() for k in BOND[:4]] == [2, 1, 0, 6]
  ends = smiles("F/C=C/F"), smiles("F/C=C\\F")
  assert [e[64:, 2:][:, BOND.index("E")].sum() for e in ends] == [1, 0]
  assert [e[64:, 2:][:, BOND.index("Z")].sum() for e in ends] == [0, 1]
  salt = smiles("[Na+].[Cl-]")
  assert valid(salt).sum() == 2
  row = dict(zip(ATOM, salt[:2, 2:].T, strict=False))
  assert sorted(row["charge"]) == [-1, 1]
  assert (row["other"].sum(), row["Cl"].sum()) == (1, 1)
  for text, words in (
    ("C1CC", "invalid SMILES 'C1CC'"),
    ("not a molecule", "invalid SMILES"),
    ("c1cccc1", "invalid SMILES"),
    ("", "has no nodes"),
    ("C" * 65, "65 nodes and 64 edges"),
  ):
    with pytest.raises(DecodeError, match=words):
      smiles(text)
  with pytest.raises(DecodeError, match="expected SMILES, got int"):
    decode(3, stated("smiles"))


def test_fields_of_a_table_hold_smiles(tmp_path):
  pytest.importorskip("rdkit")
  rows = [("name", "smiles"), ("a", "CCO"), ("b", "OCC")]
  with open(tmp_path / "m.csv", "w", newline="") as file:
    csv.writer(file).writerows(rows)
  lines = [json.dumps({"id": n, "graph": s}) + "\n" for n, s in rows[1:]]
  (tmp_path / "m.jsonl").write_text("".join(lines))
  for kind, name, fields in (
    ("csv", "m.csv", {"graph": "smiles"}),
    ("manifest", "m.jsonl", {}),
  ):
    spec = SourceConfig(
      kind=kind,
      path=str(tmp_path / name),
      split="",
      fields=fields,
      units={"graph": "smiles"},
    )
    config = Config(data=DataConfig(sources={"s": spec}))
    source = open_source(config, "s")
    raw = [source.record(i).read(("graph",))["graph"] for i in range(2)]
    assert raw == [b"CCO", b"OCC"]
    assert not source.spans(0, ("graph",))


def test_smiles_stand_for_files():
  pytest.importorskip("rdkit")
  base = tiny_config()
  inputs = {"graph": InputConfig(frames=1, mode="molecule_flip")}
  model = dataclasses.replace(
    base.model, heads=("t", "g"), frame_table={"graph": 1}
  )
  config = dataclasses.replace(
    base, model=model, data=dataclasses.replace(base.data, inputs=inputs)
  )
  preparer = Preparer(config, make_tokenizer(base.data.tokenizer))
  want = smiles("CCO")[None]
  read = Item(lambda: b"OCC", "smiles")
  for value in ("smiles:CCO", "graph:smiles:OCC", read):
    got = preparer.prepare_one("graph", value)
    np.testing.assert_array_equal(got, want)
  with pytest.raises(DecodeError, match="C1CC: invalid SMILES"):
    preparer.prepare_one("graph", "smiles:C1CC")


def test_every_molecule_of_the_real_set(data_dir):
  pytest.importorskip("rdkit")
  path = data_dir / "small_modalities" / "esol_molecules.csv"
  with open(path, newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 964
  for row in rows:
    x = smiles(row["smiles"])
    assert valid(x)[:64].any()
    assert np.abs(x[:, PLACES]).max() < 9
