"""Rows of tables: what cells become, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError, DataConfig
from mico_jax.data import columns as columns_tool
from mico_jax.data.columns import columns_of
from mico_jax.data.input_checks import check_inputs
from mico_jax.modalities import MODALITIES, DecodeError, Geometry, as_columns

TABLE = MODALITIES["tabular"]
ENTRIES = (
  ("age", 20.0, 30.0, 50.0),
  ("id",),
  ("work", "private", "state", "None"),
  ("sex", "f", "m"),
)
HEAD = b"sex,age,work,id\n"


def stated(*entries, frames=1):
  return Geometry(frames, 16, columns=as_columns(entries or ENTRIES))


def decode(raw, geometry=None):
  return TABLE.decode(raw, geometry or stated())


def test_cells_become_states_rows_and_shares():
  x = decode(HEAD + b"m,35,state,9\n f ,10, ?,\n")
  assert x.shape == (2, 64, 18)
  # Columns stand in the order of the config; rows of categories begin at 1.
  assert x[0, :4, 0].tolist() == [1, 2, 2, 0]
  assert x[0, :3, 1].tolist() == [0, 2, 5]
  np.testing.assert_allclose(x[0, 0, 2:5], [1, 0.25, 0])
  assert x[1, :3, 0].tolist() == [1, 3, 2]
  np.testing.assert_allclose(x[1, 0, 2:5], [-1, 0, 0])
  assert not x[:, 3:].any()
  for raw in (
    {"age": 35, "work": "state", "sex": "m"},
    b'{"sex": "m", "id": 4, "work": "state", "age": "35.0"}',
    np.array([35.0, 1.0, 1.0]),
  ):
    np.testing.assert_array_equal(decode(raw), x[:1])
  lost = np.array([np.nan, 2, 0])
  np.testing.assert_array_equal(
    decode({"age": None, "work": "None", "sex": "f"}), decode(lost)
  )
  assert decode(lost)[0, :3, 0].tolist() == [3, 2, 2]
  far = decode(np.array([1e9, 0, 0]))
  np.testing.assert_allclose(far[0, 0, 2:5], [1, 20, 0])


def test_numbers_are_shares_of_intervals():
  knots = (-1.0, 0.0, 2.0, 3.0)
  values = np.linspace(-1, 3, 9)
  x = decode(values[:, None], stated(("a", *knots)))[:, 0, 2:5]
  # Their widths rebuild the number.
  np.testing.assert_allclose(-1 + x @ np.diff(knots), values, atol=1e-6)
  # Without columns an array holds standard deviations.
  plain = decode(np.array([-2.0, 0.25]), Geometry(1, 16))[0]
  assert plain[:3, 0].tolist() == [1, 1, 0]
  np.testing.assert_allclose(plain[0, 2:], 0)
  np.testing.assert_allclose(plain[1, 2:8], [1, 1, 1, 1, 0.5, 0])


def test_rows_are_frames():
  table = HEAD + b"".join(b"m,%d,state,0\n" % age for age in (20, 30, 50))
  x = decode(table)
  mode = TABLE.mode()
  np.testing.assert_array_equal(mode.host(x, stated(frames=3), None), x)
  two = mode.host(x[:2], stated(frames=3), None)
  np.testing.assert_array_equal(two, x[[0, 1, 1]])
  with pytest.raises(DecodeError, match="3 rows, but a sample has"):
    mode.host(x, stated(frames=2), None)
  mask = TABLE.embedding.valid_tokens(x, xp=np)
  assert mask.sum(axis=1).tolist() == [3, 3, 3]
  hide = TABLE.modes["hide"]
  many = np.repeat(x, 200, axis=0)
  got = hide.host(many, stated(frames=600), np.random.default_rng(0))
  hidden = got[..., 0] == 3
  assert 0.07 < hidden[:, :3].mean() < 0.13
  assert not hidden[:, 3:].any()
  np.testing.assert_array_equal(got[~hidden], many[~hidden])


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    (HEAD + b"m,35,unheard,9\n", "'work': unknown category 'unheard'; known"),
    (HEAD + b"m,old,state,9\n", "'age': 'old' is no number"),
    (HEAD + b"m,inf,state,9\n", "'age': inf; expected finite"),
    (HEAD + b",,,9\n", "row 1 of this tabular has no value"),
    (HEAD + b"m,35\n", "line 2 has 2 cells"),
    (b"sex,age\nm,35\n", "no column 'work', unlike data.columns.tabular"),
    (b"sex,age,work,eyes\nm,35,state,2\n", "a column 'eyes', unlike"),
    (b"sex,sex\nm,m\n", "same name"),
    (HEAD, "a table of 1 lines"),
    (b"\xff\xfe,", "not a readable table"),
    (b"{]", "not a readable JSON"),
    ({"age": [1], "work": "state", "sex": "m"}, r"\[1\] is no value"),
    (np.array([35.0, 3, 0]), "'work': 3; expected a whole number from 0 to 2"),
    (np.array([35.0, 0.5, 0]), "'work': 0.5"),
    (np.array([35.0, 1]), r"shape \[2\]; expected 3 fields"),
    (np.zeros((1, 2, 3)), "expected numbers"),
    (np.zeros((0, 3)), "shape"),
    ("row", "expected the file of a table"),
  ],
)
def test_bad_tables_are_refused(raw, words):
  with pytest.raises(DecodeError, match=words) as error:
    decode(raw)
  assert "\n" not in str(error.value)
  with pytest.raises(DecodeError, match="of which nothing is known"):
    decode(HEAD + b"m,35,state,9\n", Geometry(1, 16))


@pytest.mark.parametrize(
  ("key", "entries", "words"),
  [
    ("imu", ENTRIES, "data.columns names 'imu'; known: tabular"),
    ("tabular", (("a", 1.0),), "column 'a' with"),
    ("tabular", (("a", 2.0, 1.0),), "increasing"),
    ("tabular", (("a", "x"),), "two or more different"),
    ("tabular", (("a", "x", "x"),), "two or more different"),
    ("tabular", (("a", "x", 1.0),), "column 'a' with"),
    ("tabular", (("", 1.0, 2.0),), "expected its name"),
    ("tabular", ("age",), "expected its name"),
    ("tabular", (("a",), ("a",)), "there twice"),
    ("tabular", (("a",),), "0 columns to read"),
    ("tabular", tuple((f"c{i}", 0, 1) for i in range(65)), "65 columns"),
    ("tabular", (("a", *map(str, range(1025))),), "1025 categories"),
    ("tabular", (("a", *range(18)),), "expected at most 17"),
    ("tabular", 3, "data.columns.tabular"),
  ],
)
def test_columns_that_a_config_cannot_have(key, entries, words):
  config = Config(data=DataConfig(columns={key: entries}))
  with pytest.raises(ConfigError, match=words):
    check_inputs(config)


def test_columns_of_the_training_part(tmp_path, capsys):
  path = tmp_path / "train.csv"
  cells = [f"{i % 10},{'ab'[i % 2]},{i % 3},?,{i}" for i in range(100)]
  path.write_text("\n".join(["n,c,code,gone,y", *cells]))
  with pytest.raises(ValueError, match="'gone' has one value only"):
    columns_of(path)
  with pytest.raises(ValueError, match="has no column z"):
    columns_of(path, unread=["z"])
  found = columns_of(path, unread=["y", "gone"], categorical=["code"], bins=4)
  assert found == (
    ("n", *np.unique(np.quantile(np.arange(100) % 10, np.linspace(0, 1, 5)))),
    ("c", "a", "b"),
    ("code", "0", "1", "2"),
    ("gone",),
    ("y",),
  )
  columns_tool.main([str(path), "--unread", "gone", "--categorical", "n"])
  printed = capsys.readouterr().out
  assert "('c', 'a', 'b')" in printed
  # They are the same after a config is stored.
  config = Config(data=DataConfig(columns={"tabular": found}))
  check_inputs(config)
  stored = config_lib.from_dict(json.loads(config_lib.to_json(config)))
  assert as_columns(stored.data.columns["tabular"]) == as_columns(found)


def test_a_frequent_value_leaves_places_for_others(tmp_path):
  """Of nine tenths zeros and 100 other values not two knots, but all."""
  path = tmp_path / "train.csv"
  gain = [0] * 900 + list(range(1, 101))
  few = [i % 7 for i in range(1000)]
  lines = [f"{a},{b}" for a, b in zip(gain, few, strict=True)]
  path.write_text("\n".join(["gain,few", *lines]))
  (_, *knots), (_, *all_of_few) = columns_of(path, bins=8)
  assert all_of_few == list(range(7))
  assert len(knots) == 9
  assert knots[:2] == [0, pytest.approx(100 / 8, abs=1)]
  assert knots[-1] == 100
  # The rows that differ from zero have equal shares.
  shares = np.histogram(range(1, 101), [1, *knots[1:-1], 101])[0]
  assert shares.max() - shares.min() <= 2


def test_every_row_of_the_real_set(data_dir):
  small = data_dir / "small_modalities"
  geometry = stated(*columns_of(small / "adult_train.csv", unread=["income"]))
  assert len(TABLE.example(geometry, 0)[0]) == 14
  for split, count in (("train", 6000), ("test", 2000)):
    table = (small / f"adult_{split}.csv").read_bytes()
    x = TABLE.decode(table, geometry)
    assert len(x) == count
    lines = table.splitlines()
    missing = sum(line.count(b"?") for line in lines[1:])
    assert (x[..., 0] == 3).sum() == missing
    for i in range(0, count, 500):
      row = TABLE.decode(b"\n".join([lines[0], lines[1 + i]]), geometry)
      np.testing.assert_array_equal(row, x[i : i + 1])
