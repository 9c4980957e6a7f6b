"""Faster ways to decode and resize give the same values as the plain ones."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mico_jax.modalities import (
  Geometry,
  bands,
  h264,
  media,
  spatial,
  video_file,
)


def _jpeg(image: Image.Image, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, "JPEG", **options)
  return file.getvalue()


def _noise(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# ------------------------------------------------------------------------ JPEG
@pytest.fixture
def counted(monkeypatch):
  """Results of simplejpeg: whether it decoded, file by file."""
  pytest.importorskip("simplejpeg")
  results = []
  decode = media.decode_jpeg

  def count(*args):
    results.append(decode(*args))
    return results[-1]

  monkeypatch.setattr(media, "decode_jpeg", count)
  return results


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_simplejpeg_gives_the_pixels_of_pillow(
  mode, progressive, subsampling, counted
):
  image = Image.fromarray(_noise(67, 45, 3)).convert(mode)
  data = _jpeg(image, progressive=progressive, subsampling=subsampling)
  pixels = media.decode_image(data, Geometry(1, 32))
  assert counted[0] is not None
  expected = np.asarray(media.open_image(data, Geometry(1, 32)))
  np.testing.assert_array_equal(pixels, expected)


def test_simplejpeg_is_turned_upright(counted):
  exif = Image.Exif()
  for turn in range(1, 9):
    exif[0x0112] = turn
    data = _jpeg(Image.fromarray(_noise(24, 40, 3)), exif=exif)
    pixels = media.decode_image(data, Geometry(1, 32))
    assert counted[-1] is not None
    expected = np.asarray(media.open_image(data, Geometry(1, 32)))
    np.testing.assert_array_equal(pixels, expected)


def test_other_and_faulty_jpegs_are_left_to_pillow(counted):
  cmyk = _jpeg(Image.fromarray(_noise(24, 40, 4), "CMYK"))
  media.decode_image(cmyk, Geometry(1, 32))
  assert not counted
  whole = _jpeg(Image.fromarray(_noise(24, 40, 3)))
  media.decode_image(whole[:-2], Geometry(1, 32))  # without its end marker
  assert counted == [None]
  with pytest.raises(media.DecodeError):
    media.decode_image(whole[: len(whole) // 2], Geometry(1, 32))


def test_without_simplejpeg_pillow_decodes(monkeypatch):
  data = _jpeg(Image.fromarray(_noise(24, 40, 3)))
  expected = media.decode_image(data, Geometry(1, 32))
  monkeypatch.setattr(media, "decode_jpeg", lambda *_: None)
  pixels = media.decode_image(data, Geometry(1, 32))
  np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
  ("shape", "draft", "parts"),
  [
    ((61, 45), 1.0, 1),
    ((61, 45), 0.6875, 2),  # 45 // 2 = 22 = 0.6875 * 32
    ((133, 300), 1.0, 4),
    ((133, 300), 1.04, 2),  # 33.28 pixels are more than 133 // 4
    ((301, 257), 1.0, 8),
    ((301, 257), 0.0, 1),
  ],
)
def test_reduced_jpegs_are_those_of_pillow(shape, draft, parts, counted):
  geometry = Geometry(1, 32, draft=draft)
  for mode in ("RGB", "L"):
    data = _jpeg(Image.fromarray(_noise(*shape, 3)).convert(mode), quality=90)
    pixels = media.decode_image(data, geometry)
    assert counted[-1] is not None
    wanted = tuple(-(-side // parts) for side in shape)
    assert pixels.shape == (*wanted, 3)
    expected = np.asarray(media.open_image(data, geometry))
    np.testing.assert_array_equal(pixels, expected)
  y, x = np.mgrid[: shape[0], : shape[1]] / 20.0
  waves = np.stack([np.sin(y + x), np.cos(y), np.cos(x - y)], -1)
  picture = np.rint(127.5 + 120 * waves).astype(np.uint8)
  data = _jpeg(Image.fromarray(picture), quality=95, subsampling=0)
  rows, cols = (side // parts for side in shape)
  blocks = picture[: rows * parts, : cols * parts].astype(np.float32)
  blocks = blocks.reshape(rows, parts, cols, parts, 3).mean(axis=(1, 3))
  found = media.decode_image(data, geometry)[:rows, :cols]
  assert np.abs(found - blocks).mean() < 1.5


# ------------------------------------------------------------------- resizing
@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ((2, 61, 47, 3), (40, 40)),
    ((1, 20, 31, 3), (40, 40)),
    ((1, 40, 47, 3), (40, 40)),  # columns only
    ((1, 61, 40, 3), (40, 40)),  # rows only
    ((3, 90, 33, 1), (35, 7)),
  ],
)
def test_resizing_in_bands_is_exact(shape, size):
  x = _noise(*shape)
  for part in (x, x[:, 1:, :-1]):
    expected = spatial.resize_bilinear(part.astype(np.float32), size)
    np.testing.assert_array_equal(
      spatial.resize_official(part, size), np.rint(expected)
    )


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 5, 7), (1, 4, 4, 2)])
def test_mirror(shape):
  x = _noise(*shape)
  for frames in (x, x[:, 1:, :-1], x.astype(np.float32)):
    flipped = bands.mirror(frames)
    np.testing.assert_array_equal(flipped, frames[:, :, ::-1])
    assert flipped.flags.c_contiguous


# ----------------------------------------------------------------------- H.264
def _video(kind: str, options: dict[str, str], *, variable: bool = False):
  file, rng = io.BytesIO(), np.random.default_rng(0)
  with av.open(file, "w", format=kind) as container:
    stream = container.add_stream("libx264", rate=30)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, 15360)
    stream.options = options
    tiles = rng.integers(0, 256, (8, 8, 3), np.uint8)
    for i in range(45):
      moved = np.roll(tiles, (i // 3, i // 5), (0, 1))
      pixels = np.kron(moved, np.ones((8, 8, 1), np.uint8))
      pixels[:4] = 5 * i
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      frame.pts = 512 * i + (int(rng.integers(0, 300)) if variable else 0)
      frame.time_base = Fraction(1, 15360)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return file.getvalue()


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("mp4", {"g": "12"}),
    ("matroska", {"g": "250"}),
    ("mp4", {"x264-params": "keyint=10:open-gop=1:bframes=3"}),
    ("mpegts", {"x264-params": "keyint=12:intra-refresh=1"}),
    ("mpegts", {"x264-params": "keyint=15:slices=4:interlaced=1"}),
    ("mp4", {"x264-params": "keyint=30:bframes=8:b-adapt=2:ref=6"}),
  ],
)
def test_a_part_of_a_video_gives_the_frames_of_the_whole(
  kind, options, variable, monkeypatch
):
  clip = video_file.VideoClip(
    _video(kind, options, variable=variable), Geometry(8, 64)
  )
  decode, results = h264.decode_some, []

  def count(*args):
    results.append(decode(*args))
    return results[-1]

  for indices in ([3, 9, 15, 20, 26, 32, 37, 44], [0], [44], [21, 22]):
    monkeypatch.setattr(h264, "decode_some", count)
    some = clip.take(indices)
    assert results[-1] is not None
    monkeypatch.setattr(h264, "decode_some", lambda *_: None)
    np.testing.assert_array_equal(some, clip.take(indices))


def test_few_packets_are_decoded_for_few_frames():
  data = _video("mp4", {"g": "12"})
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    packets = [p for p in container.demux(stream) if p.size]
    extradata = stream.codec_context.extradata
  for wanted in ({packets[0].pts}, {packets[-1].pts}):
    needed = list(h264._needed(packets, wanted, extradata))
    assert 1 <= len(needed) <= 12
    assert wanted <= {p.pts for p in needed}


def test_a_damaged_h264_video_is_decoded_whole(monkeypatch):
  data = bytearray(_video("mp4", {"g": "12"}))
  start = data.find(b"mdat")
  data[start + 3000 : start + 3400] = bytes(400)
  clip = video_file.VideoClip(bytes(data), Geometry(8, 64))
  some = clip.take([0, 20, 40])
  monkeypatch.setattr(h264, "decode_some", lambda *_: None)
  np.testing.assert_array_equal(some, clip.take([0, 20, 40]))


@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_any_bytes_are_divided_into_units(width):
  rng = np.random.default_rng(0)
  for size in (0, 1, 3, 5, 40, 400):
    for _ in range(20):
      packet = rng.integers(0, 4, size, np.uint8).tobytes()
      assert all(0 <= head < 256 for head in h264._heads(packet, width))
      h264._kind(packet, width)
