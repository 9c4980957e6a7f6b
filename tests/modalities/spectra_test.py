"""Spectra: bands, wavelengths, units, patches, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest

from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data.input_checks import check_stated
from mico_jax.data.references import FileReader
from mico_jax.data.storage import Storage
from mico_jax.modalities import MODALITIES, DecodeError, Geometry
from mico_jax.modalities.items import check_channels

SPECTRUM = MODALITIES["hyperspectral"]
NM = ("500", "400.5", "900", "1600.0", "2200")


def stated(unit="reflectance", bands=NM):
  return Geometry(1, 16, unit=unit, channels=bands)


def patch(count=5, side=7):
  return np.random.default_rng(0).random((side, side, count))


def frame(raw, geometry=None, mode="linear"):
  geometry = geometry or stated()
  return (
    SPECTRUM.modes[mode]
    .host(SPECTRUM.decode(raw, geometry), geometry, None)[0]
    .astype(np.float32)
  )


def npz(**arrays) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def test_a_row_is_a_band_in_order_of_wavelengths():
  x = patch()
  got = frame(x)
  order = [1, 0, 2, 3, 4]
  want = 2 * x.reshape(49, 5).T[order] - 1
  np.testing.assert_allclose(got[:5, :49], want, atol=1e-3)
  deviations = (want - want.mean()) / want.std()
  np.testing.assert_allclose(got[:5, 49:98], deviations, atol=3e-3)
  assert got[:5, 98:147].all()
  np.testing.assert_allclose(got[:5, 147], [0.4005, 0.5, 0.9, 1.6, 2.2], 1e-3)
  assert not got[5:].any()
  mask = SPECTRUM.embedding.valid_tokens(got[None], xp=np)[0]
  assert mask.tolist() == [True, True, *[False] * 62]


def test_the_pixel_is_in_the_middle():
  x = patch(side=11)
  np.testing.assert_array_equal(frame(x), frame(x[2:-2, 2:-2]))
  alone = frame(x[5, 5])
  flags = alone[:5, 98:147].reshape(5, 7, 7)
  assert flags[:, 3, 3].all()
  assert flags.sum() == 5
  np.testing.assert_allclose(alone[:5, 24], frame(x)[:5, 24], atol=1e-6)
  holes = x.copy()
  holes[5, 5, 3] = np.nan
  gone = frame(holes)
  assert gone[3, 98 + 24] == gone[3, 24] == 0


def test_units_are_one_after_decoding():
  x = patch()
  want = frame(x)
  scaled = np.rint(1e4 * x).astype(np.int16)
  got = frame(scaled, stated("reflectance,10000"))
  np.testing.assert_allclose(got, want, atol=3e-3)
  counts = (3000 * x).astype(np.uint16)
  got = frame(counts, stated("counts"), "logarithmic")
  order = counts.reshape(49, 5).T[[1, 0, 2, 3, 4]].astype(float)
  log = 2 * np.log1p(order) / math.log(65536) - 1
  np.testing.assert_allclose(got[:5, :49], log, atol=1e-3)
  light = frame(x, stated("W/m2/sr/um"), "radiance")[:5, :49]
  sent = 2 * np.log1p(x.reshape(49, 5).T[[1, 0, 2, 3, 4]]) / math.log(1001) - 1
  np.testing.assert_allclose(light, sent, atol=1e-3)
  for unit, mode in (("counts", "linear"), ("W/m2/sr/um", "logarithmic")):
    with pytest.raises(DecodeError, match=r"data\.inputs\.hyperspectral\.mode"):
      frame(x, stated(unit), mode)


def test_files_may_hold_wavelengths_and_agree():
  x = patch()
  nm = np.array([float(v) for v in NM])
  np.testing.assert_array_equal(frame(npz(cube=x, wavelengths=nm)), frame(x))
  np.testing.assert_array_equal(frame(npz(cube=x)), frame(x))
  for wrong in (nm + 1, nm[:4], nm[::-1]):
    with pytest.raises(DecodeError, match=r"bands of .* nm; stated are 5"):
      frame(npz(cube=x, wavelengths=wrong))


@pytest.mark.parametrize(
  ("raw", "geometry", "words"),
  [
    (patch(4), stated(), r"4 bands, .*; expected 5, as in training"),
    (patch(6), stated(), r"6 bands, .*; expected 5, as in training"),
    (np.moveaxis(patch(), 2, 0), stated(), "7 bands"),
    (patch()[:6], stated(), "expected a pixel in the middle"),
    (patch(side=17), stated(), "odd numbers of rows and columns up to 15"),
    (patch(), stated(""), "without a unit; state"),
    (300 * patch(), stated(), "cannot be reflectance"),
    (-patch(), stated("counts"), "cannot be counts"),
    (patch() * np.inf, stated(), "infinite"),
    (patch() * np.nan, stated(), "no value, only gaps"),
    (patch() > 0, stated(), "expected numbers"),
    (patch()[0], stated(), r"\[Y, X, bands\]"),
    (patch(), stated(bands=("red", *NM[1:])), "named by their wavelengths"),
    (patch(), stated(bands=("0.5", *NM[1:])), "micrometres times 1000"),
    (patch(), stated(bands=("400.50", *NM[1:])), "different"),
    (npz(x=patch()), stated(), "without an array 'cube'"),
    (b"", stated(), "0 bytes"),
    (b"ENVI", stated(), "not a readable spectrum"),
    ("cube", stated(), "expected the file of a spectrum"),
  ],
)
def test_bad_spectra_are_refused(raw, geometry, words):
  with pytest.raises(DecodeError, match=words) as error:
    SPECTRUM.decode(raw, geometry)
  assert "\n" not in str(error.value)


def test_sources_name_the_same_bands():
  def config(*names):
    sources = {
      f"s{i}": SourceConfig(
        kind="manifest",
        units={"hyperspectral": "counts"},
        channels={"hyperspectral": bands} if bands else {},
      )
      for i, bands in enumerate(names)
    }
    return Config(data=DataConfig(sources=sources))

  good = config("400,500", "400,500")
  inputs = {"hyperspectral": dataclasses.replace(
    SPECTRUM.default_input, mode="logarithmic")}  # fmt: skip
  with_mode = lambda c: dataclasses.replace(
    c, data=dataclasses.replace(c.data, inputs=inputs)
  )
  check_stated(with_mode(good), "s0", "hyperspectral")
  for names, words in (
    (("",), "is empty; hyperspectral needs"),
    (("400,500", "400,510"), "as all sources of hyperspectral"),
    (("400,none",), "named by their wavelengths"),
  ):
    with pytest.raises(ConfigError, match=words):
      check_stated(with_mode(config(*names)), "s0", "hyperspectral")
  check_channels("hyperspectral", ("400",), ("400",))
  with pytest.raises(ValueError, match="with 1 channels 400; the model"):
    check_channels("hyperspectral", ("400",), ("400", "500"))


def test_pixels_of_a_cube_are_named_by_their_places(tmp_path):
  from scipy import io as scipy_io

  cube = np.arange(20 * 30 * 5).reshape(20, 30, 5).astype(np.uint16)
  np.savez(tmp_path / "c.npz", cube=cube)
  scipy_io.savemat(tmp_path / "c.mat", {"cube": cube, "text": "a"})
  reader = FileReader(str(tmp_path), "", Storage.of(DataConfig()), "all")
  for file in ("c.npz", "c.mat"):
    inner = reader.read(f"{file}:cube@9,12")
    np.testing.assert_array_equal(inner, cube[2:17, 5:20])
    edge = reader.read(f"{file}:cube@0,29")
    np.testing.assert_array_equal(edge[7:, :8], cube[:8, 22:])
    assert np.isnan(edge[:7]).all()
    assert np.isnan(edge[:, 8:]).all()
    geometry = stated("counts")
    middle = SPECTRUM.decode(edge, geometry)[3, 3]
    np.testing.assert_array_equal(middle, cube[0, 29][[1, 0, 2, 3, 4]])
    with pytest.raises(DecodeError, match=r"no pixel 20,0 in an array"):
      reader.read(f"{file}:cube@20,0")
    assert reader.spans(f"{file}:cube@0,0") == []
  for name, words in (("text", "expected an array"), ("x", "has no array 'x'")):
    with pytest.raises(DecodeError, match=words):
      reader.read(f"c.mat:{name}@0,0")
  (tmp_path / "d.mat").write_bytes(b"MATLAB 7.3 HDF5" + bytes(200))
  with pytest.raises(DecodeError, match=r"not a readable \.mat"):
    reader.read("d.mat:cube@0,0")


def test_pixels_of_the_real_set(data_dir):
  folder = data_dir / "small_modalities"
  reader = FileReader(str(folder), "", Storage.of(DataConfig()), "all")
  # AVIRIS, 380 to 2500 nm, without its noisy bands.
  kept = [*range(3, 107), *range(112, 153), *range(166, 219)]
  bands = tuple(f"{380 + 9.46 * i:.1f}" for i in kept)
  geometry = stated("counts", bands)
  mode = SPECTRUM.modes["logarithmic"]
  places = [(r, c) for r in range(100) for c in range(100)]
  for row, column in places[::23]:  # all edges among them
    name = f"hyperspectral_jasper.npz:cube@{row},{column}"
    array = mode.host(SPECTRUM.decode(reader.read(name), geometry), geometry)
    assert array.shape == (1, 256, 148)
    assert array[0, :198, 98:147].any(axis=1).all()
    assert not array[0, 198:].any()
