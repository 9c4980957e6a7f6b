"""Depth, normals and raw arrays: one reading of shape and unit, or refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mico_jax.modalities import MODALITIES, DecodeError, Geometry, media
from mico_jax.modalities.arrays import read_npy

METRES = np.linspace(0.5, 5.0, 24 * 32, dtype=np.float32).reshape(24, 32)
MILLIMETRES = np.rint(METRES * 1000).astype(np.uint16)


def npy(array: np.ndarray) -> bytes:
  """The .npy file of an array."""
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def picture(array: np.ndarray, kind: str = "png") -> bytes:
  """The picture file of an array."""
  out = io.BytesIO()
  Image.fromarray(array).save(out, kind)
  return out.getvalue()


def depth(raw, unit: str = "metre") -> np.ndarray:
  """Decoded depth, [T, Y, X]."""
  clip = MODALITIES["depth"].decode(raw, Geometry(1, 32, unit=unit))
  return clip.take(range(len(clip)))


def refused(match: str, call, *args) -> str:
  """The one line that a call is refused with."""
  with pytest.raises(DecodeError, match=match) as error:
    call(*args)
  assert "\n" not in str(error.value)
  return str(error.value)


# ----------------------------------------------------------------------- shape
@pytest.mark.parametrize(
  ("shape", "frames"),
  [
    ((24, 32), 1), ((24, 32, 1), 1), ((1, 24, 32), 1), ((1, 24, 32, 1), 1),
    ((5, 24, 32), 5), ((5, 24, 32, 1), 5), ((3, 24, 32), 3),
  ],
)  # fmt: skip
@pytest.mark.parametrize("file", [False, True])
def test_shapes_of_depth(shape, frames, file):
  array = np.broadcast_to(METRES.reshape((24, 32, 1)[: 2 + (shape[-1] == 1)]),
                          shape)  # fmt: skip
  found = depth(npy(array) if file else array)
  assert found.shape == (frames, 24, 32)
  np.testing.assert_allclose(found[-1], METRES)


@pytest.mark.parametrize(
  "shape",
  [
    (24, 32, 3), (24, 32, 4), (24, 32, 2), (480, 640, 6), (5, 24, 32, 3),
    (32,), (), (24, 3), (0, 32), (24, 0, 1), (1, 1, 24, 32, 1),
  ],
)  # fmt: skip
def test_no_shapes_of_depth(shape):
  refused("one value per pixel", depth, np.ones(shape, np.float32))


@pytest.mark.parametrize(
  "shape",
  [
    (24, 32, 4), (24, 32, 1), (24, 3), (24, 4), (5, 24, 32),
    (2, 5, 24, 32, 3), (0, 24, 3), (24,),
  ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["image", "video", "normal"])
def test_no_shapes_of_pictures(key, shape):
  decode = MODALITIES[key].decode
  refused("frames must be", decode, np.ones(shape, np.uint8), Geometry(1, 32))


@pytest.mark.parametrize("shape", [(3, 24, 32), (5, 3, 24, 32)])
def test_channels_first(shape):
  array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  last = np.moveaxis(array, -3, -1)
  for key in ("image", "video"):
    decode = MODALITIES[key].decode
    found, expected = (
      decode(array, Geometry(1, 32)),
      decode(last, Geometry(1, 32)),
    )
    places = range(len(expected))
    np.testing.assert_array_equal(found.take(places), expected.take(places))
  refused("frames must be", MODALITIES["normal"].decode, array, Geometry(1, 32))


def test_shapes_of_pictures():
  for shape in ((24, 32), (24, 32, 3), (1, 24, 32, 3), (4, 4)):
    raw = np.full(shape, 7, np.uint8)
    for given in (raw, npy(raw), [raw]):
      clip = media.decode_frames(given, Geometry(1, 32))
      rows, columns = shape[-3:-1] if shape[-1] == 3 else shape
      assert clip.take([0]).shape == (1, rows, columns, 3)
      assert len(clip) == 1
  clips = [np.ones((2, 24, 32, 3), np.uint8)] * 2
  refused("holds 2 frames", media.decode_frames(clips, Geometry(1, 32)).take,
          [0])  # fmt: skip


# ------------------------------------------------------------------------ unit
@pytest.mark.parametrize(
  "raw",
  [
    MILLIMETRES, MILLIMETRES.astype(np.int32), MILLIMETRES.astype(">u2"),
    MILLIMETRES.astype(np.float32), np.asfortranarray(MILLIMETRES),
    picture(MILLIMETRES), picture(MILLIMETRES, "tiff"), npy(MILLIMETRES),
    npy(np.asfortranarray(MILLIMETRES)), npy(MILLIMETRES.astype(">f8")),
    picture(MILLIMETRES.astype(np.int32), "tiff"),
  ],
)  # fmt: skip
def test_millimetres_of_every_kind(raw):
  np.testing.assert_allclose(depth(raw, "millimetre")[0], METRES, atol=6e-4)


@pytest.mark.parametrize("unit", ["metre", "millimetre", "relative"])
@pytest.mark.parametrize("dtype", [bool, np.complex64, np.int8, "U3", "M8[s]"])
def test_dtypes_that_are_no_depth(dtype, unit):
  raw = np.zeros((24, 32), dtype)
  refused("depth of", depth, raw, unit)
  refused("depth of|expected numbers", depth, npy(raw), unit)


def test_8_bits_are_relative_only():
  raw = np.linspace(0, 255, 24 * 32).astype(np.uint8).reshape(24, 32)
  for given in (raw, picture(raw), npy(raw)):
    for unit in ("metre", "millimetre"):
      refused("uint8", depth, given, unit)
    np.testing.assert_allclose(depth(given, "relative")[0], raw / 255)


def test_whole_range_of_16_bits_is_relative():
  raw = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
  for given in (raw, picture(raw), npy(raw)):
    np.testing.assert_allclose(depth(given, "relative")[0], raw / 65535)
  for dtype in (np.int16, np.int32, np.uint64):
    refused("depth of", depth, (raw // 4).astype(dtype), "relative")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_millimetres_declared_metres(dtype):
  text = refused("100 m", depth, MILLIMETRES.astype(dtype), "metre")
  assert "depth:mm:FILE" in text


def test_integers_beyond_the_limit_are_never_clipped():
  raw = np.full((24, 32), 20, np.uint16)
  np.testing.assert_allclose(depth(raw), 20)
  raw[0, 0] = 101
  refused("1 of 768 readings", depth, raw)


def test_far_background_of_floats_is_clipped():
  raw = METRES.copy()
  raw[:8] = 655.35
  assert depth(raw).max() == 100


def test_metres_declared_millimetres():
  text = refused("depth:m:FILE", depth, METRES, "millimetre")
  assert "5 mm" in text
  assert not depth(np.zeros((24, 32), np.float32), "millimetre").any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e39])
@pytest.mark.parametrize("unit", ["metre", "millimetre", "relative"])
def test_values_that_are_no_depth(value, unit):
  raw = np.full((24, 32), 0.5)
  raw[3, 4] = value
  refused("non-finite", depth, raw, unit)


def test_relative_beyond_its_range():
  refused("exceeds 1", depth, np.full((24, 32), 1.01), "relative")


def test_frames_of_depth_files():
  files = [picture(MILLIMETRES), npy(MILLIMETRES + np.uint16(100))]
  found = depth(files, "millimetre")
  np.testing.assert_allclose(found, [METRES, METRES + 0.1], atol=6e-4)
  refused("of one size", depth, [METRES, METRES.T])
  refused("single maps", depth, [METRES[None].repeat(2, 0)])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_depth_of_several_channels(mode):
  out = io.BytesIO()
  kind = "tiff" if mode == "CMYK" else "png"
  Image.new(mode, (8, 8)).save(out, kind)
  refused("one channel", depth, out.getvalue(), "millimetre")


def test_depth_is_turned_as_its_picture():
  exif = Image.Exif()
  exif[0x0112] = 6
  out = io.BytesIO()
  Image.fromarray(MILLIMETRES).save(out, "png", exif=exif)
  found = depth(out.getvalue(), "millimetre")[0]
  np.testing.assert_allclose(found, np.rot90(METRES, -1), atol=6e-4)


_HUGE = """
import io, re, sys
import numpy as np
from PIL import Image
from mico_jax.modalities import MODALITIES, Geometry
def peak():
  status = open("/proc/self/status").read()
  return int(re.search("VmHWM: *\\t *([0-9]+)", status)[1])
data = open(sys.argv[1], "rb").read()
start = peak()
g = Geometry(1, 224, unit="millimetre")
depth = MODALITIES["depth"]
x = depth.modes["metric"].host(depth.decode(data, g), g, None)
print(peak() - start, x.shape, float(x[0, 100, 112]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_huge_depth_in_bounded_memory(tmp_path):
  """118 megapixels of 16 bits: the file itself is decoded, nothing more."""
  row = np.arange(10_000, dtype=np.uint16) + 1000
  Image.fromarray(np.broadcast_to(row, (11_800, 10_000))).save(
    tmp_path / "d.png", compress_level=1
  )
  done = subprocess.run(
    [sys.executable, "-c", _HUGE, str(tmp_path / "d.png")],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  grown, rest = done.stdout.split(" ", 1)
  assert rest.startswith("(1, 224, 224) 6.0")
  assert int(grown) < 320 * 1024  # KiB; 236 MB are the pixels themselves


# --------------------------------------------------------------------- normals
def unit_vectors() -> np.ndarray:
  """Normals of a sphere, float32 [24, 32, 3]."""
  y, x = np.mgrid[-0.7:0.7:24j, -0.7:0.7:32j]
  z = np.sqrt(1 - np.minimum(x**2 + y**2, 0.99))
  n = np.stack([x, -y, z], -1)
  return (n / np.linalg.norm(n, axis=-1, keepdims=True)).astype(np.float32)


def normals(raw) -> np.ndarray:
  """Decoded normals, uint8 [T, Y, X, 3]."""
  clip = MODALITIES["normal"].decode(raw, Geometry(1, 32))
  return clip.take(range(len(clip)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_normals_as_vectors(dtype):
  n = unit_vectors().astype(dtype)
  want = np.rint((unit_vectors() + 1) * 127.5)
  coded = want.astype(np.uint8)
  for given in (n, npy(n), npy(np.asfortranarray(n)), coded, npy(coded),
                picture(coded), [n], [npy(n)], n[None]):  # fmt: skip
    assert np.abs(normals(given)[0] - want).max() <= 1
  assert normals([n, npy(n)]).shape == (2, 24, 32, 3)


def test_a_few_normals_may_be_missing():
  n = unit_vectors()
  n[0] = 0
  assert (normals(n)[0, 0] == 128).all()


def test_no_normals():
  n = unit_vectors()
  refused("unit length", normals, (n + 1) / 2)
  refused("unit length", normals, 0.3 * n)
  refused("up to 255", normals, (n + 1) * 127.5)
  refused("up to nan", normals, np.where(n > 0.5, np.nan, n))
  refused("expected", normals, np.moveaxis(n, -1, 0))
  refused("expected", normals, n[..., :2])
  refused("uint8", normals, (n * 127).astype(np.int8))


# ------------------------------------------------------------------------- npy
def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
  """The header of a .npy file, whatever it claims."""
  body = text.encode()
  size = struct.pack("<H" if version == (1, 0) else "<I", len(body))
  return b"\x93NUMPY" + bytes(version) + size + body


CLAIM = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}\n"
LIES = {
  "huge": header(CLAIM.format("'<f4'", "(100000, 1000000)")) + bytes(64),
  "negative": header(CLAIM.format("'<f4'", "(-4, -4)")) + bytes(64),
  "short": npy(METRES)[:-1],
  "long": npy(METRES) + b"\0",
  "object": header(CLAIM.format("'|O'", "(4, 4)")) + bytes(128),
  "record": header(CLAIM.format("[('a', '<f4')]", "(4, 4)")) + bytes(64),
  "nested": header("(" * 3000),
  "text": header("__import__('os').getpid()"),
  "no header": b"\x93NUMPY",
  "version": header(CLAIM.format("'<f4'", "(4, 4)"), (9, 9)) + bytes(64),
  "shape": header(CLAIM.format("'<f4'", "('a', 4)")) + bytes(64),
  "many axes": header(CLAIM.format("'<f4'", (1,) * 90)) + bytes(4),
  "long header": header(CLAIM.format("'<f4'", "(4, 4)") + " " * 60000),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("key", ["image", "depth", "normal"])
def test_npy_files_are_not_taken_at_their_word(key, name):
  tracemalloc.start()
  geometry = Geometry(1, 32, unit="metre")
  refused("npy file|shape|pixel|must be", MODALITIES[key].decode, LIES[name],
          geometry)  # fmt: skip
  assert tracemalloc.get_traced_memory()[1] < 8_000_000
  tracemalloc.stop()


def test_npy_files_of_every_order():
  for array in (METRES, np.asfortranarray(METRES), METRES.astype(">f8"),
                METRES[::2, ::3], METRES[0, 0]):  # fmt: skip
    np.testing.assert_array_equal(read_npy(npy(array)), array)


# ------------------------------------------------------------------- counts
def pgm(most: int, kind: str = "P5") -> bytes:
  """A PGM file of `MILLIMETRES` whose header says the largest value."""
  body = MILLIMETRES.astype(">u2").tobytes()
  if kind == "P2":
    body = " ".join(map(str, MILLIMETRES.ravel())).encode()
  return f"{kind}\n32 24\n{most}\n".encode() + body


@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_counts_of_a_pgm_are_not_stretched(kind):
  np.testing.assert_allclose(
    depth(pgm(65535, kind), "millimetre")[0], METRES, atol=1e-3
  )
  data = pgm(10_000, kind)
  refused("end at 10000 would be stretched", depth, data, "millimetre")
  opened = Image.open(io.BytesIO(data))
  refused("end at 10000 would be stretched", depth, opened, "millimetre")


def test_counts_of_a_jpeg_2000_are_not_stretched():
  data = bytearray(picture(MILLIMETRES, "jpeg2000"))
  np.testing.assert_allclose(
    depth(bytes(data), "millimetre")[0], METRES, atol=1e-3
  )
  data[data.find(b"\xff\x4f\xff\x51") + 42] = 11  # 12 bits
  refused("end at 4095 would be stretched", depth, bytes(data), "millimetre")


@pytest.mark.parametrize("shape", [(48, 64, 5), (48, 64, 11), (240, 320, 32)])
def test_frames_that_come_last_are_refused(shape):
  refused("channels or frames", depth, np.ones(shape, np.float32))


def test_a_grey_picture_is_no_map_of_normals():
  grey = np.rint(METRES * 40).astype(np.uint8)
  for raw in (grey, picture(grey), picture(np.repeat(grey[..., None], 3, -1))):
    refused("grey picture", normals, raw)
    clip = MODALITIES["normal"].decode([raw], Geometry(1, 32))
    refused("grey picture", clip.take, [0])
  assert (normals(np.full((4, 5, 3), 128, np.uint8)) == 128).all()  # nothing
