"""What a sheet says of the values that it draws."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mico_jax import config as config_lib
from mico_jax.config import AudioConfig
from mico_jax.data import sheet
from mico_jax.modalities import MODALITIES, Geometry
from mico_jax.modalities.sound import mel_filters, mel_place


@pytest.mark.parametrize(("bins", "rate"), [(32, 16000), (128, 44100)])
def test_a_tone_lies_in_the_filter_that_hears_it_best(bins, rate):
  filters = mel_filters(bins, 4096, rate)
  for hz in (500.0, 1500.0, 5000.0):
    loudest = filters[round(hz * 4096 / rate)].argmax()
    assert abs(mel_place(hz, bins, rate) * bins - (loudest + 0.5)) < 0.75


def test_ticks_of_a_spectrogram():
  audio = MODALITIES["audio"]
  config = AudioConfig(sample_rate=16000, hop_ms=20.0)
  scale = audio.scale(Geometry(frames=1, size=32, audio=config), audio.mode())
  assert scale.right.unit == "s"
  assert scale.right.ticks[-1] == (1.0, "0.64")  # 32 frames of 20 ms
  assert scale.up.unit == "Hz"
  for place, label in scale.up.ticks:
    assert place == pytest.approx(mel_place(float(label), 32, 16000))
    assert 0 < place < 1
  assert scale.values == "nats"


def test_units_of_depth_are_those_of_its_mode():
  depth = MODALITIES["depth"]
  unit = lambda mode: depth.scale(Geometry(frames=1, size=8), depth.mode(mode))
  assert unit("metric").values == "m"
  assert unit("relative").values == ""


def test_colour_bars_and_titles(monkeypatch):
  config = config_lib.load("demo")
  written = []
  text = sheet._Pen.text

  def seen(pen, x, y, value, **style):
    written.append((x, y, value))
    text(pen, x, y, value, **style)

  monkeypatch.setattr(sheet._Pen, "text", seen)
  source = sheet.open_source(config, "test")
  records = [("test", source.record(3))]
  image = sheet.draw_records(config, records, keys=("depth", "audio"))
  inputs = sheet.load_inputs(*(config, records[0][1], "test", ("depth",), None))
  low, high = inputs["depth"].min(), inputs["depth"].max()
  values = [value for *_, value in written]
  assert "depth" in values
  assert f"{low:.3g}" in values
  assert f"{high:.3g} m" in values
  assert sum(value.endswith(" nats") for value in values) == 2
  assert values.count("Hz") == 2
  # The bar above its numbers goes from the darkest to the brightest colour.
  x, y, _ = next(row for row in written if row[2] == f"{low:.3g}")
  bar = np.asarray(image)[int(y) - 6, int(x) : int(x) + sheet.CELL]
  expected = sheet.colour_map(np.linspace(0, 1, sheet.CELL)[None])[0]
  np.testing.assert_array_equal(bar, expected)


def test_words_are_apart():
  image = Image.new("RGB", (300, 30), "white")
  sheet._Pen(image).text(0, 5, "at left a cone")
  ink = (np.asarray(image.convert("L")) < 128).any(axis=0)
  columns = np.flatnonzero(ink)
  gaps = np.diff(columns)
  assert (gaps >= 4).sum() == 3  # three spaces, wider than any between letters
  assert sorted(gaps)[-4] <= 3


def test_a_map_without_a_stated_unit_keeps_its_range():
  titles = [t for t, _ in sheet.tiles_of("thermal", np.eye(3)[None])]
  assert titles == ["thermal 0..1"]
  assert MODALITIES["thermal"].scale is None
