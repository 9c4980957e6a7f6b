"""Picture files of every format as they are seen: upright, over white."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from mico_jax.modalities import DecodeError, Geometry, media

GEOMETRY = Geometry(1, 32)
ORIENTATIONS = range(1, 9)
# Format -> options that keep the pixels as they are, or nearly.
KEEP_EXIF = {
  "jpeg": {"quality": 95, "subsampling": 0},
  "mpo": {"quality": 95, "subsampling": 0},
  "png": {},
  "tiff": {},
  "webp": {"lossless": True},
}


def scene(rows: int = 24, cols: int = 40) -> np.ndarray:
  """Another colour in each corner, smooth between them."""
  y, x = np.mgrid[0:rows, 0:cols] / [[[max(rows, 1)]], [[max(cols, 1)]]]
  return np.stack([250 * y, 250 * x, 120 * (x + y)], -1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
  """The file of an image."""
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def decode(data: bytes, **limits) -> np.ndarray:
  """The picture as the package sees it."""
  return media.decode_image(data, Geometry(1, 32, **limits))


def apart(a: np.ndarray, b: np.ndarray) -> int:
  """The largest difference of two pictures of one size."""
  assert a.shape == b.shape
  return int(np.abs(a.astype(int) - b).max())


# ---------------------------------------------------------------- orientation
def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
  """The scene as a camera stores it, and the EXIF that says how to turn it."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  for stored in (Image.fromarray(scene()), Image.fromarray(scene(40, 24))):
    for turn in (None, *Image.Transpose):
      tried = stored if turn is None else stored.transpose(turn)
      tried.info["exif"] = exif.tobytes()
      # Pillow's own reading is the judge.
      if apart_or_none(ImageOps.exif_transpose(tried)) == 0:
        tried.info.pop("exif")
        return tried, exif
  raise AssertionError(orientation)


def apart_or_none(image: Image.Image) -> int | None:
  """The difference to the scene; None where the size is another."""
  array = np.asarray(image)
  return apart(array, scene()) if array.shape == scene().shape else None


@pytest.mark.parametrize("kind", KEEP_EXIF)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_is_applied(kind, orientation):
  stored, exif = turned(orientation)
  options = dict(KEEP_EXIF[kind])
  if kind == "mpo":
    options |= {"save_all": True, "append_images": [stored]}
  data = encode(stored, kind, exif=exif, **options)
  limit = 6 if kind in ("jpeg", "mpo") else 0
  assert apart(decode(data), scene()) <= limit


@pytest.mark.parametrize("value", [0, 9, 6000])
def test_orientation_out_of_range_says_nothing(value):
  exif = Image.Exif()
  exif[0x0112] = value
  data = encode(Image.fromarray(scene()), "png", exif=exif)
  assert apart(decode(data), scene()) == 0


def test_unreadable_exif_says_nothing():
  image = Image.fromarray(scene())
  for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"):
    assert apart(decode(encode(image, "png", exif=exif)), scene()) == 0


def test_large_pictures_are_turned_after_they_are_reduced(monkeypatch):
  monkeypatch.setattr(media, "LARGE", 300)
  stored, exif = turned(6)
  small = decode(encode(stored, "png", exif=exif))
  assert small.shape == (12, 20, 3)
  want = Image.fromarray(scene()).reduce(2)
  assert apart(small, np.asarray(want)) <= 1


# --------------------------------------------------------------- transparency
def hidden(colour: tuple[int, int, int]) -> Image.Image:
  """A blue disc on clear ground, in which a colour hides."""
  y, x = np.mgrid[-16:16, -20:20]
  inside = (x**2 + y**2 < 120)[..., None]
  pixels = np.where(inside, (20, 40, 200), colour)
  alpha = np.where(inside, 255, 0)
  return Image.fromarray(
    np.concatenate([pixels, alpha], -1).astype(np.uint8), "RGBA"
  )


def on_white() -> np.ndarray:
  """What is seen of `hidden`."""
  image = hidden((255, 255, 255))
  return np.asarray(image.convert("RGB"))


def palette_file(image: Image.Image, kind: str) -> bytes:
  """With a transparent entry of the palette."""
  clear = np.asarray(image)[..., 3] == 0
  index = np.where(clear, 1, 0).astype(np.uint8)
  out = Image.fromarray(index, "P")
  ground = np.asarray(image)[0, 0, :3].tolist()
  out.putpalette([20, 40, 200, *ground] + [0] * 762)
  return encode(out, kind, transparency=1)


COLOURS = [(255, 0, 0), (0, 0, 0), (3, 250, 9)]
CLEAR = {
  "png": lambda x: encode(x, "png"),
  "png palette": lambda x: palette_file(x, "png"),
  "png colour": lambda x: encode(
    x.convert("RGB"), "png", transparency=x.getpixel((0, 0))[:3]
  ),
  "gif": lambda x: palette_file(x, "gif"),
  "webp": lambda x: encode(x, "webp", lossless=True, exact=True),
  "webp moving": lambda x: encode(
    x, "webp", save_all=True, append_images=[x.rotate(90)], lossless=True,
    exact=True,
  ),
  "png moving": lambda x: encode(
    x, "png", save_all=True, append_images=[x.rotate(90)]
  ),
  "tiff": lambda x: encode(x, "tiff"),
  "tiff pages": lambda x: encode(
    x, "tiff", save_all=True, append_images=[x.rotate(90)]
  ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLEAR)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("large", [False, True])
def test_transparency_is_seen_on_white(kind, colour, large, monkeypatch):
  data = CLEAR[kind](hidden(colour))
  want = on_white()
  if large:
    monkeypatch.setattr(media, "LARGE", 400)
    want = np.asarray(Image.fromarray(want).reduce(2))
  assert apart(decode(data), want) <= large


@pytest.mark.parametrize("colour", [0, 130])
def test_grey_with_alpha(colour):
  alpha = np.asarray(hidden((0, 0, 0)))[..., 3]
  grey = np.where(alpha > 0, 90, colour).astype(np.uint8)
  image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
  want = np.where(alpha > 0, 90, 255)
  assert (decode(encode(image, "png")) == want[..., None]).all()


def test_half_transparent_is_mixed():
  data = encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "png")
  assert apart(decode(data), np.full((8, 8, 3), 127, np.uint8)) <= 1


def raw_png(bits: int, colour: int, row: bytes, width: int, clear: bytes):
  """A PNG of one row, written here: Pillow writes no such."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    code = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + code

  head = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
  return b"".join(
    (
      b"\x89PNG\r\n\x1a\n",
      chunk(b"IHDR", head),
      chunk(b"tRNS", clear) if clear else b"",
      chunk(b"IDAT", zlib.compress(b"\0" + row)),
      chunk(b"IEND", b""),
    )
  )


@pytest.mark.parametrize(
  ("bits", "row", "want"),
  [
    (1, [0b01010000], [0, 255, 0, 255]),
    (2, [0b00011011], [0, 255, 170, 255]),
    (4, [0x01, 0x23], [0, 255, 34, 51]),
    (8, [0, 1, 2, 3], [0, 255, 2, 3]),
  ],
)
def test_one_grey_value_is_transparent(bits, row, want):
  """Sample value 1, at every depth."""
  data = raw_png(bits, 0, bytes(row), 4, struct.pack(">H", 1))
  assert decode(data)[0, :, 0].tolist() == want


def test_one_16_bit_colour_is_transparent():
  colours = struct.pack(">6H", 1000, 2000, 3000, 1001, 2000, 3000)
  data = raw_png(16, 2, colours, 2, struct.pack(">3H", 1000, 2000, 3000))
  with pytest.raises(DecodeError, match="16-bit RGB PNG"):
    decode(data)


def test_frames_of_a_list_are_pictures_like_others():
  stored, exif = turned(8)
  files = [encode(stored, "png", exif=exif), encode(hidden((9, 9, 9)), "png")]
  for data, want in zip(files, (scene(), on_white()), strict=True):
    clip = media.decode_frames([data, data], GEOMETRY)
    assert apart(clip.take([0, 1])[1], want) == 0


# ------------------------------------------------------------ several pictures
@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("gif", {}),
    ("png", {}),
    ("webp", {"lossless": True}),
    ("tiff", {}),
    ("mpo", {"quality": 95}),
  ],
)
def test_of_several_pictures_it_is_the_first(kind, options):
  pages = [Image.new("RGB", (16, 16), (v, v, v)) for v in (200, 10, 90)]
  data = encode(
    pages[0], kind, save_all=True, append_images=pages[1:], **options
  )
  with Image.open(io.BytesIO(data)) as image:
    assert getattr(image, "n_frames", 1) == 3
  assert apart(decode(data), np.full((16, 16, 3), 200, np.uint8)) <= 2


# -------------------------------------------------------------- kinds of files
@pytest.mark.parametrize(
  ("mode", "kind"),
  [
    ("1", "png"), ("L", "jpeg"), ("P", "png"), ("CMYK", "jpeg"),
    ("CMYK", "tiff"), ("L", "bmp"), ("RGB", "ppm"), ("YCbCr", "jpeg"),
  ],
)  # fmt: skip
def test_colour_modes(mode, kind):
  image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
  assert decode(encode(image, kind)).min() >= 253
  black = Image.new("RGB", (16, 16), (0, 0, 0)).convert(mode)
  assert decode(encode(black, kind)).max() <= 2


def test_16_bit_colour_keeps_its_upper_bits():
  head = struct.pack(">3H", 0xFF00, 0x8000, 0x00FF)
  data = raw_png(16, 2, head, 1, b"")
  assert decode(data)[0, 0].tolist() == [255, 128, 0]


def test_colour_profiles_are_ignored():
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
  data = encode(Image.fromarray(scene()), "png", icc_profile=profile)
  assert apart(decode(data), scene()) == 0


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_values_of_more_than_8_bits_are_no_picture(mode):
  image = Image.new("F" if mode == "F" else "I", (8, 8), 700)
  if mode == "I;16":
    image = Image.fromarray(np.full((8, 8), 700, np.uint16))
  with pytest.raises(DecodeError, match="depth:mm:FILE"):
    decode(encode(image, "tiff"))


@pytest.mark.parametrize(
  "data",
  [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"P6\n0 4\n255\n",
    b"P6\n70000 70000\n255\n",
    b"GIF89a\0\0\0\0\0\0\0;",
  ],
)
def test_no_pictures(data):
  with pytest.raises(DecodeError) as error:
    decode(data)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff", "bmp", "jpeg"])
def test_declared_size_is_checked_before_pixels_are_made(kind, monkeypatch):
  data = encode(Image.new("L", (300, 300)), kind)
  monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: 1 / 0)
  monkeypatch.setattr(media, "decode_jpeg", lambda *_: 1 / 0)
  with pytest.raises(DecodeError, match="division"):
    decode(data)
  with pytest.raises(DecodeError, match="max_pixels"):
    decode(data, max_pixels=10_000)


# ------------------------------------------------------------------- cut short
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_without_its_end_marker(progressive, mode):
  noise = np.random.default_rng(1).integers(0, 255, (40, 56, 3), np.uint8)
  image = Image.fromarray(noise).convert(mode)
  data = encode(image, "jpeg", progressive=progressive)
  whole = decode(data)
  for missing in (1, 2):
    assert apart(decode(data[:-missing]), whole) == 0


@pytest.mark.parametrize("progressive", [False, True])
def test_no_cut_jpeg_is_taken_for_whole(progressive):
  """At every length: refused, or the same picture."""
  noise = np.random.default_rng(2).integers(0, 255, (24, 24, 3), np.uint8)
  data = encode(Image.fromarray(noise), "jpeg", progressive=progressive)
  whole = decode(data)
  taken = 0
  for length in range(1, len(data)):
    try:
      found = decode(data[:length])
    except DecodeError:
      continue
    taken += 1
    # The last bits of a picture may matter to no pixel.
    assert apart(found, whole) == 0, (length, len(data))
  assert 2 <= taken <= 6


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "webp", "tiff"])
def test_no_cut_file_is_taken_for_whole(kind):
  data = encode(Image.fromarray(scene()), kind)
  whole = decode(data)
  for length in range(1, len(data), 7):
    try:
      found = decode(data[:length])
    except DecodeError:
      continue
    assert apart(found, whole) == 0, (length, len(data))


def test_what_an_animated_webp_leaves_free_is_white():
  first = Image.new("RGBA", (40, 24))
  first.paste((255, 0, 0, 255), (0, 0, 20, 24))
  second = Image.fromarray(scene()).convert("RGBA")
  data = encode(
    first, "webp", save_all=True, append_images=[second], lossless=True
  )
  found = decode(data)
  assert (found[:, :20] == (255, 0, 0)).all()
  assert (found[:, 20:] == 255).all()
