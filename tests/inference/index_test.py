"""An index of embeddings: exact search, and files that come, change and go."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.inference import index as index_lib
from mico_jax.inference.index import Index
from mico_jax.testing import tiny_checkpoint

pytest.importorskip("pyarrow", reason="an index keeps its rows in parquet")


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_index(count, width=8, parts=3, seed=0):
  rng = np.random.default_rng(seed)
  vectors = unit(rng.normal(size=(count, width)).astype(np.float32))
  columns = {
    "id": [f"r{i}" for i in range(count)],
    "modality": [("image", "audio")[i % 3 == 0] for i in range(count)],
    "path": [f"{i}.png" for i in range(count)],
    "source": [""] * count,
    "index": list(range(count)),
  }
  return Index(np.array_split(vectors, parts), columns), vectors


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 300])
def test_search_is_exact(monkeypatch, block, k):
  monkeypatch.setattr(index_lib, "_BLOCK", block)
  index, vectors = random_index(211)
  queries = unit(np.random.default_rng(1).normal(size=(4, 8)))
  hits = index.search(queries, k)
  exact = vectors.astype(np.float64) @ queries.T
  for q, found in enumerate(hits):
    best = np.argsort(-exact[:, q], kind="stable")[:k]
    assert [hit.id for hit in found] == [f"r{i}" for i in best]
    np.testing.assert_allclose(
      [hit.score for hit in found], exact[best, q], atol=1e-6
    )
  audio = index.search(queries, k, modality="audio")
  for q, found in enumerate(audio):
    mine = np.arange(0, 211, 3)
    best = mine[np.argsort(-exact[mine, q], kind="stable")[:k]]
    assert [hit.index for hit in found] == best.tolist()


def test_equal_scores_rank_in_order():
  columns = {
    "id": [str(i) for i in range(9)],
    "modality": ["image"] * 9,
    "path": ["p"] * 9,
    "source": [""] * 9,
    "index": list(range(9)),
  }
  rows = np.zeros((9, 4), np.float32)
  rows[:, 0] = 1
  (hits,) = Index([rows[:4], rows[4:]], columns).search(rows[:1], 6)
  assert [hit.index for hit in hits] == [0, 1, 2, 3, 4, 5]


def test_queries_that_mean_nothing():
  index, vectors = random_index(12)
  for queries, k, modality, message in [
    (vectors[:1, :4], 1, "", r"\[Q, 8\]"),
    (vectors[:1], 0, "", "at least 1"),
    (vectors[:1] * np.nan, 1, "", "finite"),
    (vectors[:1], 1, "depth", "it has audio, image"),
  ]:
    with pytest.raises(ValueError, match=message):
      index.search(queries, k, modality)
  with pytest.raises(ValueError, match="12 embeddings"):
    Index([vectors], {name: [] for name in index_lib.COLUMNS})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp("index") / "run"
  tiny_checkpoint.save_tiny(root)
  return str(root)


def picture(path, seed):
  rng = np.random.default_rng(seed)
  Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def command(capsys, *words):
  status = main([*words, "--json"])
  found = capsys.readouterr()
  assert status == 0, found.err
  return json.loads(found.out), found.err


def test_files_come_change_and_go(run, tmp_path, capsys):
  folder, out = tmp_path / "photos", tmp_path / "idx"
  (folder / "deep").mkdir(parents=True)
  names = [folder / f"{i}.png" for i in range(5)] + [folder / "deep" / "x.png"]
  for i, name in enumerate(names):
    picture(name, i)
  (folder / "notes.txt").write_text("no picture")
  (folder / "broken.png").write_bytes(b"no picture")
  index = lambda *more: command(
    capsys,
    *("index", "--checkpoint", run, "--check", "fast", "--out", str(out)),
    *more,
  )
  report, err = index(str(folder))
  assert (report["items"], report["added"], report["failed"]) == (6, 6, 1)
  assert "1 files of other types" in err
  assert "broken.png" in pathlib.Path(report["errors"]).read_text()
  # faiss and clip-retrieval read these as they are.
  array = np.load(out / "emb" / "emb_0.npy")
  model = mico_jax.load(run, check="fast")
  order = [str(folder / f"{i}.png") for i in range(5)] + [str(names[-1])]
  expected = model.embed(image=order)["image"]
  found = Index.open(out)
  rows = {found.hit(i, 0).path: array[i] for i in range(6)}
  np.testing.assert_allclose([rows[p] for p in order], expected, atol=1e-6)

  (folder / "broken.png").unlink()
  report, _ = index(str(folder))  # nothing is embedded again
  assert (report["items"], report["unchanged"], report["added"]) == (6, 6, 0)
  picture(names[1], 100)  # another picture of the same size
  os.utime(names[1], (1, 1))
  picture(folder / "new.png", 101)
  report, _ = index(str(folder))
  counts = {k: report[k] for k in ("items", "added", "updated", "unchanged")}
  assert counts == {"items": 7, "added": 1, "updated": 1, "unchanged": 5}
  (hits,) = model.search(out, image=names[1], k=1)
  assert hits[0].path == str(names[1])
  assert hits[0].score == pytest.approx(1, abs=1e-5)

  remove = lambda *more: command(capsys, "index", "--out", str(out), *more)
  report, _ = remove("--remove", str(names[0]))
  assert (report["items"], report["removed"]) == (6, 1)
  names[2].unlink()
  report, _ = remove("--prune")
  assert (report["items"], report["removed"]) == (5, 1)
  (hits,) = model.search(out, image=names[3], k=100)
  left = {str(p) for p in (names[1], *names[3:], folder / "new.png")}
  assert {hit.path for hit in hits} == left
  assert main(["index", "--out", str(out), "--remove", "nowhere.png"]) == 2
  assert "nowhere.png" in capsys.readouterr().err
  listed = {p.name for p in (out / "emb").iterdir()}
  parts = index_lib.read_note(out)["parts"]
  assert listed == {f"emb_{part['number']}.npy" for part in parts}


def test_a_row_means_one_file_from_any_folder(
  run, tmp_path, capsys, monkeypatch
):
  picture(tmp_path / "a.png", 0)
  picture(tmp_path / "b.png", 1)
  (tmp_path / "deep").mkdir()
  out = str(tmp_path / "idx")
  index = ("index", "--checkpoint", run, "--check", "off", "--out", out)
  monkeypatch.chdir(tmp_path)
  command(capsys, *index, "a.png", "b.png")
  monkeypatch.chdir(tmp_path / "deep")
  report, _ = command(capsys, *index, "../a.png", str(tmp_path / "a.png"))
  assert (report["items"], report["unchanged"]) == (2, 1)
  report, _ = command(capsys, "index", "--out", out, "--prune")
  assert (report["items"], report["removed"]) == (2, 0)
  report, _ = command(capsys, "index", "--out", out, "--remove", "../b.png")
  assert (report["items"], report["removed"]) == (1, 1)
  np.save(tmp_path / "d.npy", np.full((20, 20), 500, np.uint16))
  files = ("depth:mm:../d.npy", "depth:m:../d.npy")
  assert main([*index, *files]) == 2
  assert "given twice" in capsys.readouterr().err


def test_search_from_the_command_line(run, tmp_path, capsys):
  for i in range(4):
    picture(tmp_path / f"{i}.png", i)
  out = str(tmp_path / "idx")
  options = ("--checkpoint", run, "--check", "fast")
  command(capsys, "index", *options, "--out", out, str(tmp_path))
  model = mico_jax.load(run, check="fast")
  image = str(tmp_path / "2.png")
  found, _ = command(
    capsys, "search", "--index", out, "--text", "a red cube", image, "-k", "2",
    "--check", "fast",
  )  # fmt: skip
  both = model.embed(text="a red cube", image=image)
  query = unit(both["text"] + both["image"])
  paths = [str(tmp_path / f"{i}.png") for i in range(4)]
  scores = (query @ model.embed(image=paths)["image"].T)[0]
  best = np.argsort(-scores)[:2]
  assert [hit["path"] for hit in found["hits"]] == [paths[i] for i in best]
  np.testing.assert_allclose(
    [hit["score"] for hit in found["hits"]], scores[best], atol=1e-6
  )
  assert main(["search", "--index", out, "--text", "a", "--check", "off"]) == 0
  assert "modality" in capsys.readouterr().out
  for words, message in [
    (("--index", out), "give --text"),
    (("--index", str(tmp_path), "--text", "a"), "no index"),
    (("--index", out, "--text", "a", "--modality", "audio"), "has image"),
    (("--index", out, image, paths[0]), "one of each"),
  ]:
    assert main(["search", *words, "--check", "off"]) == 2
    assert message in capsys.readouterr().err


def test_another_checkpoint_is_refused(run, tmp_path, capsys):
  picture(tmp_path / "a.png", 0)
  out = str(tmp_path / "idx")
  words = ("--check", "off", "--out", out, str(tmp_path / "a.png"))
  command(capsys, "index", "--checkpoint", run, *words)
  other = str(tmp_path / "other")
  tiny_checkpoint.save_tiny(tmp_path / "other", seed=1)
  assert main(["index", "--checkpoint", other, *words]) == 2
  assert "another checkpoint" in capsys.readouterr().err
  model = mico_jax.load(other, check="off")
  with pytest.raises(ValueError, match="not comparable"):
    model.search(out, "a red cube")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine.txt").write_text("x")
  words = (
    "--check",
    "off",
    "--out",
    str(tmp_path / "full"),
    str(tmp_path / "a.png"),
  )
  assert main(["index", "--checkpoint", run, *words]) == 2
  assert "other files" in capsys.readouterr().err
  part = tmp_path / "idx" / "emb" / "emb_0.npy"
  np.save(part, np.zeros((2, 3), np.float32))
  with pytest.raises(ConfigError, match=r"emb_0\.npy: float32 \[2, 3\]"):
    Index.open(out)
