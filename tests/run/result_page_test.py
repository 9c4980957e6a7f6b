"""The page of results, as `mico-jax report` writes it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image

from mico_jax.cli.main import main
from mico_jax.config import override
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import open_source
from mico_jax.evaluation import (
  Examples,
  attention_tiles,
  evaluate,
  results,
  write,
)
from mico_jax.inference.omni_model import load
from mico_jax.modalities import preprocessing
from mico_jax.models.inspection import attention
from mico_jax.testing import tiny_checkpoint

_VOID = {"meta", "img", "br", "link", "input"}


class _Page(HTMLParser):
  """Checks that tags nest; collects addresses and texts."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.sources: list[str] = []
    self.texts: list[str] = []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.sources += [v for k, v in attrs if k in ("src", "href")]
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.texts.append(data)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
  """A folder as `evaluate --out` leaves it."""
  root = tmp_path_factory.mktemp("page")
  tiny_checkpoint.save_tiny(root / "run")
  model = load(str(root / "run"), check="off")
  config = override(
    model.config,
    [
      "evaluation.size=6",
      "evaluation.groups=('v','a')",
      "evaluation.examples=4",
    ],
  )
  examples = Examples()
  found = evaluate(
    model.model,
    model.params,
    config,
    model.tokenizer,
    examples=examples,
  )
  write(found, str(root / "out"), examples=examples)
  return root / "out"


def test_examples_hold_what_the_model_was_given(evaluated):
  held = json.loads((evaluated / "examples.json").read_text())
  names = {example["name"] for example in held["examples"]}
  assert {"retrieval/t->v", "retrieval/v->t", "retrieval/t->a"} <= names
  for item in held["items"].values():
    for tile in item["tiles"]:
      data = base64.b64decode(tile["jpeg"])
      assert max(Image.open(io.BytesIO(data)).size) == 128
    (sound,) = item["sounds"]
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(sound["flac"])))
    assert len(samples)
    assert np.abs(samples).max() > 0


def test_examples_show_what_the_encoder_attends_to(evaluated):
  held = json.loads((evaluated / "examples.json").read_text())
  first = held["examples"][0]["answers"][0]["item"]  # the first one found
  shown = held["items"][str(first)]
  with_maps = [i for i, x in held["items"].items() if x.get("attention")]
  assert str(first) in with_maps
  assert len(with_maps) <= attention_tiles.ITEMS
  model = load(str(evaluated.parent / "run"), check="off")
  name = model.config.evaluation.source
  source = open_source(model.config, name)
  index = next(i for i in range(6) if source.record(i).id == shown["id"])
  inputs = load_inputs(
    *(model.config, source.record(index), name, ("video",), None)
  )
  pixels = preprocessing.to_pixels(
    *(model.config, {"video": inputs["video"][None]}, ("video",)),
    train=False,
    xp=np,
  )
  frames = jnp.asarray(pixels["video"])
  weights = attention(model.model, model.params, "video", frames)
  weights = np.asarray(weights)[0, 0].mean(axis=0)
  (tile,) = (t for t in shown["attention"] if t["modality"] == "video")
  assert tile["title"].startswith("attention on video")
  data = base64.b64decode(tile["jpeg"])
  dark = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)
  plain = next(t for t in shown["tiles"] if t["modality"] == "video")
  data = base64.b64decode(plain["jpeg"])
  light = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)
  side = round(len(weights) ** 0.5)
  mean = lambda x: x.reshape(side, 128 // side, side, -1).mean((1, 3)).ravel()
  share = mean(dark) / mean(light)
  expected = 0.2 + 0.8 * weights / weights.max()
  np.testing.assert_allclose(share, expected, atol=0.05)


def test_shaded_keeps_what_has_all_the_weight():
  picture = np.full((3, 5, 3), 100, np.uint8)
  weights = np.array([[0.0, 0.5], [0.25, 1.0]], np.float32)
  out = attention_tiles.shaded(picture, weights)
  assert out.shape == (6, 6, 3)
  np.testing.assert_array_equal(out[::3, ::3, 0], [[20, 60], [40, 100]])


def test_the_page_stands_alone(evaluated, tmp_path, capsys):
  out = tmp_path / "sub" / "report.html"
  assert main(["report", str(evaluated), "--out", str(out)]) == 0
  assert capsys.readouterr().out.strip() == str(out)
  text = out.read_text()
  page = _Page(text)
  assert page.sources
  assert all(source.startswith("data:") for source in page.sources)
  assert "default-src 'none'" in text
  rows = json.loads((evaluated / "evaluation.json").read_text())["results"]
  for row in rows:
    assert row["name"] in page.texts
    assert f"{row['value']:.3f}" in page.texts
  # Marks of the answers agree with the ranks.
  held = json.loads((evaluated / "examples.json").read_text())
  best = [
    example["answers"][0]["right"]
    for example in held["examples"]
    if example.get("rank")
  ]
  firsts = [t for t in page.texts if re.match(r"1\. (right|wrong)", t)]
  assert [t.startswith("1. right") for t in firsts] == best


def test_results_side_by_side(tmp_path, capsys):
  protocol = results.Protocol(source="s", split="test", command="c <b>")
  sure, unsure = np.ones(50), np.arange(50) % 2.0
  for name, values in (("a", sure), ("b", unsure)):
    rows = [
      protocol.result("retrieval/t->va/R@1", values, total=100),
      protocol.result("retrieval/t->va/R@5", values, total=50),
    ]
    write(rows, str(tmp_path / name / "eval"))
  write(
    [protocol.result("caption/v/CIDEr", sure, total=50)],
    str(tmp_path / "c" / "eval"),
  )
  folders = [str(tmp_path / name / "eval") for name in "abc"]
  out = tmp_path / "r.html"
  assert main(["report", *folders, "--out", str(out)]) == 0
  text = out.read_text()
  page = _Page(text)
  assert "a/eval" in page.texts
  assert "text → video + audio" in page.texts
  assert page.texts.count("not measured") == 4
  assert "n/N 50/100, coverage 50.0%" in page.texts
  assert text.count('<td class="best"><b>1.000') == 2
  assert "<b>0.500" in text
  assert '<td class="best"><b>0.500' not in text
  assert "c <b>" in page.texts  # escaped


def test_numbers_of_other_data_are_other_rows(tmp_path, capsys):
  for split in ("train", "test"):
    protocol = results.Protocol(source="s", split=split)
    rows = [protocol.result("matching/v/accuracy", np.ones(50), total=50)]
    write(rows, str(tmp_path / split))
  row = json.loads((tmp_path / "test" / "evaluation.json").read_text())
  row["results"][0] |= {
    "metric": "msrvtt_1ka_t2v_r1",
    "figures": [
      {"value": 0.5, "model": "M", "setting": "zero-shot", "source": "S"}
    ],
  }
  (tmp_path / "msrvtt_1ka.json").write_text(json.dumps(row))
  paths = ["train", "test", "msrvtt_1ka.json"]
  out = tmp_path / "r.html"
  argv = ["report", *(str(tmp_path / p) for p in paths), "--out", str(out)]
  assert main(argv) == 0
  page = _Page(out.read_text())
  assert page.texts.count("not measured") == 6  # three rows of one number each
  assert page.texts.count("matching/v/accuracy") == 3
  assert "msrvtt_1ka" in page.texts
  assert "0.500 M" in page.texts
  assert "zero-shot, S" in page.texts


def test_what_is_no_result_is_refused(tmp_path, capsys):
  out = str(tmp_path / "r.html")
  assert main(["report", str(tmp_path), "--out", out]) == 2
  assert "mico-jax evaluate --out DIR" in capsys.readouterr().err
  (tmp_path / "evaluation.json").write_text("[1, 2]")
  assert main(["report", str(tmp_path), "--out", out]) == 2
  assert "is no file of results" in capsys.readouterr().err
  for value in ("null", '"high"'):
    row = f'{{"results": [{{"name": "a", "value": {value}}}]}}'
    (tmp_path / "evaluation.json").write_text(row)
    assert main(["report", str(tmp_path), "--out", out]) == 2
    assert "is no file of results" in capsys.readouterr().err
