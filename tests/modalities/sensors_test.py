"""Sensors: what their files say, what is stated, and what is refused."""

from __future__ import annotations

import datetime
import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mico_jax.modalities import (
  MODALITIES,
  FileSpec,
  Geometry,
  file_spec,
)
from mico_jax.modalities.items import Item, as_item, as_list

IMU, TIMESERIES = MODALITIES["imu"], MODALITIES["timeseries"]
THERMAL, XRAY = MODALITIES["thermal"], MODALITIES["xray"]
SI = "m/s2,rad/s"


def stated(unit="", rate=0.0, *channels, frames=1, size=16):
  return Geometry(frames, size, unit=unit, rate=rate, channels=channels)


def motion(count=200, rate=50.0):
  """Six smooth channels of some seconds, [samples, 6]."""
  time = np.arange(count)[:, None] / rate
  return 3 * np.sin(2 * math.pi * time * np.arange(0.5, 3.5, 0.5)) + 0.5


def npz(**arrays: Any) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def csv(names, rows) -> bytes:
  lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
  return "\n".join(lines).encode()


def picture(array, kind="png", mode=None) -> bytes:
  out = io.BytesIO()
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(out, kind)
  return out.getvalue()


def refused(modality, raw, geometry, words) -> None:
  with pytest.raises(ValueError, match=words) as error:
    modality.decode(raw, geometry)
  assert "\n" not in str(error.value)


# ------------------------------------------------------------------ statements
def test_names_of_files_state_what_they_do_not_say():
  want = FileSpec("imu", "a/walk.npy", "g,deg/s", 12.5)
  assert file_spec("imu:g,deg/s@12.5:a/walk.npy") == want
  some = file_spec("biosignal:mV@500@I,V1:e.npy")
  assert (some.unit, some.channels) == ("millivolt", ("I", "V1"))
  assert file_spec("thermal:kelvin:t.tif").unit == "kelvin"
  assert file_spec("scan.dcm") == FileSpec("xray", "scan.dcm")
  assert file_spec("imu:gs://bucket/a:b.npz").path == "gs://bucket/a:b.npz"
  assert file_spec("timeseries:@@OT,HUFL:t.csv").channels == ("OT", "HUFL")
  for wrong, words in (
    ("imu:gg@50:walk.npy", "imu:g,deg/s@RATE:FILE"),
    ("imu:g,deg/s@fast:walk.npy", "no number of Hz"),
    ("thermal:t.tif", "thermal:kelvin:FILE"),
  ):
    with pytest.raises(ValueError, match=words):
      file_spec(wrong)
  item = as_item("imu", "g,deg/s@50:walk.npy")
  assert (item.value, item.unit, item.rate) == ("walk.npy", "g,deg/s", 50.0)
  pair = (motion(), 50.0)
  assert as_list("imu", pair) == [pair]
  assert isinstance(as_item("imu", pair), Item)


def test_the_file_says_it_or_the_source():
  x = motion()
  want = IMU.decode(x, stated(SI, 50.0))
  np.testing.assert_allclose(want, x, rtol=1e-6)
  says = npz(values=x, unit=SI, rate=50.0, channels=np.array(IMU.channels))
  table = csv(
    ("time", *IMU.channels), [(i / 50, *row) for i, row in enumerate(x)]
  )
  for raw, geometry in (
    (says, stated()),
    (says, stated(SI, 50.0)),
    (table, stated(SI)),
    (npz(values=x), stated(SI, 50.0)),
    ((x, 50.0), stated(SI)),
    (x.T, stated(SI, 50.0)),  # [channels, samples]: only one axis fits
  ):
    np.testing.assert_allclose(IMU.decode(raw, geometry), want, atol=1e-6)
  refused(IMU, says, stated("g,deg/s"), "its source states 'g,deg/s'")
  refused(IMU, says, stated(SI, 40.0), "rates that differ: 50 Hz by the file")
  refused(IMU, table, stated(SI, 40.0), "50 Hz by its times")
  refused(IMU, x, stated(rate=50.0), "imu without a unit")
  refused(IMU, x, stated(SI), "imu without a rate")
  refused(IMU, (x, -1.0), stated(SI), "a rate of -1.0")


def test_units_of_motion_are_one_after_decoding():
  x = motion()
  scale = {
    SI: (1, 1),
    "m/s2,deg/s": (1, 180 / math.pi),
    "g,rad/s": (1 / 9.80665, 1),
    "g,deg/s": (1 / 9.80665, 180 / math.pi),
  }
  assert set(scale) == set(IMU.units)
  for unit, (acc, gyro) in scale.items():
    raw = x * np.repeat([acc, gyro], 3)
    got = IMU.decode(raw, stated(unit, 50.0))
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)
  refused(IMU, 100 * x, stated(SI, 50.0), "gyro_x reaches .* beyond 100")


# -------------------------------------------------------------- rates and gaps
@pytest.mark.parametrize("rate", [10.0, 33.0, 200.0])
def test_resampling_keeps_what_both_rates_hold(rate):
  time = np.arange(int(8 * rate)) / rate
  x = np.zeros((len(time), 6))
  x[:, 0] = np.sin(2 * math.pi * 1.5 * time)
  x[:, 1] = np.cos(2 * math.pi * 60 * time) * (rate > 120)  # beyond 25 Hz
  got = IMU.decode(x, stated(SI, rate))
  assert abs(len(got) - 400) <= 1
  moments = np.arange(len(got)) / 50
  inner = slice(50, 350)
  want = np.sin(2 * math.pi * 1.5 * moments)
  np.testing.assert_allclose(got[inner, 0], want[inner], atol=0.02)
  assert np.abs(got[inner, 1]).max() < 0.02


def test_gaps_are_masked_and_change_nothing_else():
  x = motion(512)
  holes = x.copy()
  holes[100:140, 2] = np.nan  # of one channel
  holes[300:340] = np.nan  # of all
  mode = IMU.mode("standardised")
  whole, gaps = (
    mode.host(IMU.decode(v, stated(SI, 50.0)), stated(SI), None)[0]
    for v in (x, holes)
  )
  values, flags = gaps[:, :6].astype("f4"), gaps[:, 6:]
  np.testing.assert_array_equal(flags, np.isfinite(holes))
  assert not values[flags == 0].any()
  mean, deviation = np.nanmean(holes, axis=0), np.nanstd(holes, axis=0)
  want = np.where(np.isfinite(holes), (holes - mean) / deviation, 0)
  np.testing.assert_allclose(values, want, atol=2e-3)
  assert whole[:, 6:].all()
  mask = IMU.embedding.valid_tokens(gaps[None], xp=np)[0]
  assert not mask[19:21].any()  # 304..336 lie in the gap of all channels
  assert mask.sum() == 30
  # At another rate a gap stays where it was, and no wider than a sample.
  slow = IMU.decode(holes[::2], stated(SI, 25.0))
  missing = np.flatnonzero(np.isnan(slow[:, 2]))
  assert {*range(100, 139), *range(300, 339)} <= set(missing) <= {
    *range(98, 142), *range(298, 342)
  }  # fmt: skip


def test_times_are_regular_or_refused():
  x = motion(40)
  times = np.arange(40) / 50.0
  kept = np.r_[0:20, 25:40]
  got = IMU.decode(npz(values=x[kept], times=times[kept]), stated(SI))
  assert got.shape == (40, 6)
  np.testing.assert_array_equal(
    np.flatnonzero(np.isnan(got[:, 0])), range(20, 25)
  )
  np.testing.assert_allclose(got[kept], x[kept], rtol=1e-6)
  for shift, words in ((0.009, "no regular step"), (-0.5, "must increase")):
    wrong = times.copy()
    wrong[30] += shift
    refused(IMU, npz(values=x, times=wrong), stated(SI), words)


# ------------------------------------------------------------------- channels
def test_channels_go_to_their_places():
  x = motion()
  order = [4, 0, 5, 1]
  names = [IMU.channels[i] for i in order]
  for raw, geometry in (
    (csv(names, x[:, order]), stated(SI, 50.0)),
    (x[:, order], stated(SI, 50.0, *names)),
    (csv(["temperature", *names], np.c_[x[:, 0], x[:, order]]),
     stated(SI, 50.0, *names)),
  ):  # fmt: skip
    got = IMU.decode(raw, geometry)
    np.testing.assert_allclose(got[:, order], x[:, order], rtol=1e-5)
    assert np.isnan(got[:, [2, 3]]).all()
  for raw, geometry, words in (
    (x[:, :3], stated(SI, 50.0), "expected 6 channels"),
    (x[:, :3], stated(SI, 50.0, "acc_x", "acc_y"), "expected 2 channels"),
    (x[:, :2], stated(SI, 50.0, "acc_x", "mag_x"), "no channel mag_x"),
    (x[:, :2], stated(SI, 50.0, "acc_x", "ACC_X"), "there twice"),
    (csv(names, x[:, order]), stated(SI, 50.0, "acc_z"), "no column acc_z"),
    (np.ones((6, 6)), stated(SI, 50.0), r"may be \[samples, channels\] or"),
  ):
    refused(IMU, raw, geometry, words)
  leads = MODALITIES["biosignal"]
  beat = np.sin(np.arange(96) / 5)
  got = leads.decode(beat, stated("microvolt", 100.0, "ECG V2"))
  there = np.flatnonzero(np.isfinite(got).all(axis=0))
  assert [leads.channels[i] for i in there] == ["V2"]
  np.testing.assert_allclose(got[:, there[0]], beat / 1000, rtol=1e-5)
  refused(leads, beat, stated("microvolt", 100.0), "expected 32 channels")


def test_edf_says_all(tmp_path):
  edfio = pytest.importorskip("edfio")
  wave = np.sin(np.arange(1000) / 9)
  signals = [
    edfio.EdfSignal(amount * wave, 200, label=label, physical_dimension="uV")
    for label, amount in (("EEG O1", 40.0), ("EEG T7", 20.0))
  ]
  data = edfio.Edf(signals).to_bytes()
  modality = MODALITIES["biosignal"]
  got = modality.decode(data, stated())
  assert len(got) == 500  # at 100 Hz
  places = [modality.channels.index(n) for n in ("O1", "T3")]
  np.testing.assert_allclose(
    got[:, places[0]], 2 * got[:, places[1]], atol=1e-4
  )
  assert np.isfinite(got).all(axis=0).sum() == 2
  refused(modality, data, stated("millivolt"), "the file is in 'microvolt'")
  refused(modality, data[:300], stated(), "EDF")


# ---------------------------------------------------------------- bad series
@pytest.mark.parametrize(
  ("raw", "words"),
  [
    (np.zeros((0, 6)), "shape"),
    (np.zeros((3, 200, 6)), "shape"),
    (np.zeros((10, 6)), "10 samples at 50 Hz is too short"),
    (np.full((200, 6), np.nan), "only gaps"),
    (np.full((200, 6), np.inf), "infinite"),
    (np.zeros((200, 6), bool), "expected numbers"),
    (b"", "0 bytes"),
    (b"\x00\xff\xfe", "not a readable series"),
    (b"1,2,3\n4,5,6\n", "without a header"),
    (b"acc_x,acc_x\n1,2\n", "same name"),
    (b"acc_x,acc_y\n1,2\n3\n", "line 3 has 1 cells"),
    (b"acc_x,acc_y\n1,fast\n", "'fast' is no number"),
    (b"time,acc_x\nsoon,2\n", "neither seconds nor dates"),
    (npz(x=np.zeros(3)), "without an array 'values'"),
    (npz(values=np.array([{"a": 1}], object)), "not a readable .npz"),
    (npz(values=motion(), channels=np.array(["acc_x"])), "expected 1 channels"),
    ("walk", "expected the file of a series"),
  ],
)
def test_bad_series_are_refused(raw, words):
  refused(IMU, raw, stated(SI, 50.0), words)


def test_constant_channels_are_zero():
  x = motion()
  x[:, 1] = 9.81
  frame = IMU.mode("standardised").host(
    IMU.decode(x, stated(SI, 50.0)), stated(SI), None
  )[0]
  assert not frame[:200, 1].any()
  assert frame[:200, 7].all()
  assert np.abs(frame[:200, 0]).max() > 1


def test_dates_become_columns_and_missing_cells_gaps():
  start = datetime.datetime(2020, 2, 28, 21)
  hours = [start + datetime.timedelta(hours=i) for i in range(60)]
  rows = [
    (t.isoformat(" "), i, "" if i == 7 else -i) for i, t in enumerate(hours)
  ]
  data = csv(("date", "load", "heat"), rows)
  x = TIMESERIES.decode(data, stated("", 0.0, "heat", "load"))
  assert x.shape == (60, 22)
  np.testing.assert_array_equal(x[:, 1], np.arange(60))
  assert np.isnan(x[7, 0])
  assert np.isnan(x[:, 2:16]).all()
  for i, t in enumerate(hours):
    day = (t.hour + t.minute / 60) / 24
    week = (t.weekday() + day) / 7
    year = (
      (t - datetime.datetime(t.year, 1, 1)).total_seconds() / 86400 / 365.25
    )
    want = [f(2 * math.pi * p) for f in (math.sin, math.cos)
            for p in (day, week, year)]  # fmt: skip
    np.testing.assert_allclose(x[i, 16:], want, atol=1e-5)
  frame = TIMESERIES.mode().host(x, stated(), None)[0]
  mask = TIMESERIES.embedding.valid_tokens(frame[None], xp=np)[0]
  assert mask.tolist() == [True] * 4 + [False] * 28
  refused(TIMESERIES, data, stated("", 0.0, "oil"), "no column oil")
  refused(TIMESERIES, data, stated(), "columns load, heat; state which")
  refused(TIMESERIES, np.zeros((7, 336)), stated(), "at most 16 channels")


# ------------------------------------------------------------------------ maps
def scene():
  """Temperatures in Celsius, float32 [20, 30]."""
  y, x = np.mgrid[0:20, 0:30]
  return (18 + 0.5 * y + 12 * (np.hypot(y - 8, x - 20) < 5)).astype(np.float32)


def pixels(modality, name, raw, unit):
  geometry = stated(unit)
  mode = modality.modes[name]
  array = mode.host(modality.decode(raw, geometry), geometry, None)
  return mode.to_pixels(array, geometry=geometry, xp=np)[0]


def test_thermal_units_are_one_after_decoding():
  want = pixels(THERMAL, "metric", scene(), "celsius")
  level = (scene() + 40) / 200 * 2 - 1
  got = THERMAL.decode(scene(), stated("celsius")).take([0])[0]
  np.testing.assert_allclose(got, scene())
  assert level.min() - 0.01 < want[..., 0].min()
  assert want[..., 0].max() < level.max() + 0.01
  np.testing.assert_allclose(want[..., 1].mean(), 0, atol=1e-4)
  kelvin = scene() + 273.15
  counts = np.rint(100 * kelvin).astype(np.uint16)
  for raw, unit in (
    (kelvin, "kelvin"),
    (counts, "centikelvin"),
    (picture(counts, "tiff"), "centikelvin"),
  ):
    np.testing.assert_allclose(
      pixels(THERMAL, "metric", raw, unit), want, atol=0.03
    )
  for raw, unit, words in (
    (kelvin, "celsius", "is that the unit"),
    (scene(), "kelvin", "is that the unit"),
    (counts, "kelvin", "is that the unit"),
    (scene().astype(np.uint8), "celsius", "8-bit thermal"),
    (scene(), "", "thermal without a unit"),
    (scene(), "fahrenheit", "thermal without a unit"),
  ):
    refused(THERMAL, raw, stated(unit), words)


def test_a_dead_pixel_is_no_reading():
  x = np.repeat(np.repeat(scene()[:16, :16], 2, 0), 2, 1)
  dead = x.copy()
  dead[4:6, 4:6] = np.nan
  whole, got = (pixels(THERMAL, "metric", v, "celsius") for v in (x, dead))
  assert got[2, 2].tolist() == [-1, 0, 0]
  far = np.ones((16, 16), bool)
  far[1:4, 1:4] = False
  np.testing.assert_allclose(got[far][:, 0], whole[far][:, 0], atol=1e-6)
  assert np.abs(got[far] - whole[far]).max() < 0.05
  refused(THERMAL, np.full((9, 9), np.nan), stated("celsius"), "any reading")
  refused(THERMAL, np.full((9, 9), np.inf), stated("celsius"), "infinite")


def test_pictures_of_heat_are_grey():
  grey = (4 * scene()).astype(np.uint8)
  want = pixels(THERMAL, "relative", grey, "picture")
  three = np.repeat(grey[..., None], 3, -1)
  for raw in (picture(grey), picture(three), three[..., 0]):
    np.testing.assert_array_equal(
      pixels(THERMAL, "relative", raw, "picture"), want
    )
  jpeg = pixels(THERMAL, "relative", picture(three, "jpeg"), "picture")
  assert np.abs(jpeg - want)[..., 0].max() < 0.3
  three[..., 2] = 255 - three[..., 2]
  refused(THERMAL, picture(three), stated("picture"), "palette of colours")
  # Counts have no scale: more of the same is the same picture.
  counts = (20 * scene()).astype(np.uint16)
  one, two = (
    pixels(THERMAL, "relative", v, "counts") for v in (counts, counts + 5000)
  )
  np.testing.assert_allclose(one, two, atol=1e-6)
  flat = pixels(THERMAL, "relative", np.full((9, 9), 7000, np.uint16), "counts")
  np.testing.assert_array_equal(flat, np.zeros_like(flat))
  clip = THERMAL.decode(counts, stated("counts"))
  with pytest.raises(ValueError, match=r"data\.inputs\.thermal\.mode"):
    THERMAL.modes["metric"].host(clip, stated("counts"), None)


def test_x_rays_are_bright_where_dense():
  x = (np.arange(20 * 20).reshape(20, 20) * 10).astype(np.uint16)  # 12 bits
  want = (x / 4095).astype(np.float32)
  for raw, unit in (
    (x, "monochrome2,12"),
    (4095 - x, "monochrome1,12"),
    (picture(x), "monochrome2,12"),
    (picture(4095 - x, "tiff"), "monochrome1,12"),
  ):
    got = XRAY.decode(raw, stated(unit)).take([0])[0]
    np.testing.assert_allclose(got, want, atol=1e-6)
  refused(XRAY, x, stated("monochrome2,10"), "says 0 to 1023")
  refused(XRAY, x, stated(), "xray without a unit")
  refused(XRAY, picture(x), stated("monochrome2"), "xray without a unit")


def dicom(x, kind, bits, **more) -> bytes:
  pydicom = pytest.importorskip("pydicom")
  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
  meta.MediaStorageSOPInstanceUID = "1.2.3"
  data = pydicom.Dataset()
  data.file_meta = meta
  data.Rows, data.Columns = x.shape
  data.SamplesPerPixel, data.PixelRepresentation = 1, 0
  data.PhotometricInterpretation = kind
  data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
  for name, value in more.items():
    setattr(data, name, value)
  data.PixelData = x.astype("<u2").tobytes()
  out = io.BytesIO()
  pydicom.dcmwrite(out, data, enforce_file_format=True)
  return out.getvalue()


def test_dicom_says_its_unit():
  x = (np.arange(20 * 20).reshape(20, 20) * 10).astype(np.uint16)
  want = (x / 4095).astype(np.float32)
  for data in (dicom(x, "MONOCHROME2", 12), dicom(4095 - x, "MONOCHROME1", 12)):
    got = XRAY.decode(data, stated()).take([0])[0]
    np.testing.assert_allclose(got, want, atol=1e-6)
  data = dicom(x, "MONOCHROME2", 12, PixelPaddingValue=0)
  got = XRAY.decode(data, stated()).take([0])[0]
  assert np.isnan(got[0, 0])
  np.testing.assert_allclose(got[1:], want[1:], atol=1e-6)
  refused(
    XRAY, data, stated("monochrome1,12"), "the file says 'monochrome2,12'"
  )
  refused(XRAY, dicom(x, "PALETTE COLOR", 12), stated(), "PALETTE COLOR")
  refused(XRAY, data[:300], stated(), "DICOM")


def test_windows_of_one_table_are_its_rows():
  """Lines are parsed once; what follows them in a window does not matter."""
  said = stated("", 0.0, "a", "b")
  lines = [f"2020-01-01 {h:02d}:00:00,{h},{h / 3}" for h in range(24)]
  whole = TIMESERIES.decode("\n".join(["date,a,b", *lines]).encode(), said)
  for first in (0, 3, 5):
    part = "\n".join(["date,a,b", *lines[first : first + 16]]).encode()
    quoted = part.replace(b"date", b'"date"')
    for data in (part, quoted, part.replace(b"\n", b"\r\n")):
      got = TIMESERIES.decode(data, said)
      np.testing.assert_array_equal(got, whole[first : first + 16])
  # The same line under another header is another row.
  turned = "\n".join(["date,b,a", *lines]).encode()
  np.testing.assert_array_equal(
    TIMESERIES.decode(turned, said)[:, :2], whole[:, 1::-1]
  )
  lines[20] = lines[20].replace("20,", "?,")
  refused(
    TIMESERIES, "\n".join(["date,a,b", *lines]).encode(), said, "'\\?' is no"
  )


# ------------------------------------------------------------------- real sets
def test_every_sample_of_the_real_sets(data_dir):
  small = data_dir / "small_modalities"
  for name, key, said, shape in (
    ("imu_basicmotions", "imu", stated(SI, 10.0), (500, 6)),
    # Beats have no rate: all are 96 samples long.
    ("ecg200", "biosignal", stated("standardised", 100.0, "ECG"), (96, 32)),
  ):
    modality = MODALITIES[key]
    arrays = np.load(small / f"{name}.npz", allow_pickle=False)
    for raw in (*arrays["train_x"], *arrays["test_x"]):
      x = modality.decode(raw, said)
      assert x.shape == shape
      array = modality.mode().host(x, said, None)
      assert np.abs(array).max() <= modality.spec.value_range[1]
      assert np.isfinite(array).all()
    assert np.isfinite(x).all(axis=0).sum() == (6 if key == "imu" else 1)
  lines = (small / "ETTh1.csv").read_bytes().splitlines(keepends=True)
  for first in range(0, 14400 - 336, 1200):
    data = b"".join([lines[0], *lines[1 + first : 337 + first]])
    names = lines[0].decode().strip().split(",")[1:]
    x = TIMESERIES.decode(data, stated("", 0.0, *names))
    assert x.shape == (336, 22)
    there = np.isfinite(x).all(axis=0)
    assert np.flatnonzero(there).tolist() == [*range(7), *range(16, 22)]
    TIMESERIES.mode().host(x, stated(), None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_thermal_picture(data_dir, split):
  import tarfile

  said, count = stated("picture", size=32), 0
  with tarfile.open(data_dir / "thermal_road" / f"{split}.tar") as tar:
    for member in tar.getmembers():
      if ".thermal." in member.name:
        raw = tar.extractfile(member).read()
        array = THERMAL.mode("relative").host(THERMAL.decode(raw, said), said)
        assert array.shape == (1, 32, 32)
        assert 0 <= array.min() < array.max() <= 1
        count += 1
  assert count == {"train": 140, "test": 38}[split]
