"""Raw inputs of an exported PyTorch folder: read or refused as by JAX."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import re
import subprocess
import sys
import wave
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax.data.tokenizer import (
  SentencePieceTokenizer,
  read_omniworld_model,
)
from mico_jax.inference.prepare import Item, Preparer
from mico_jax.interop.exporting import export, torch_inputs
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.modalities import DecodeError, Stated
from mico_jax.testing.tiny_checkpoint import save_tiny, tiny_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

LIMIT = 1e-5
RATE = 16000


class Sides:
  """The preparation of one config, ours and that of an exported folder."""

  def __init__(self, folder: pathlib.Path, **audio: Any):
    config = tiny_config()
    data = dataclasses.replace(
      config.data, audio=dataclasses.replace(config.data.audio, **audio)
    )
    config = dataclasses.replace(config, data=data)
    tokenizer = SentencePieceTokenizer(read_omniworld_model())
    self.preparer = Preparer(config, tokenizer)
    exporter.write_code(folder)
    self.module = exporter.load_module(folder)
    settings = exporter.preprocessing_json(config, tokenizer)
    self.reader = self.module.Reader(settings)

  def ours(self, key: str, value: Any) -> np.ndarray:
    unit = value.unit if isinstance(value, Item) else ""
    if key == "depth" and isinstance(value, (str, pathlib.Path)):
      unit = "metre"  # only whether it is relative counts from here on
    array = self.preparer.prepare_one(key, value)
    geometry = self.preparer.geometry(key, Stated(unit) if unit else None)
    mode = self.preparer.mode(key)
    return np.array(mode.to_pixels(array, geometry=geometry, xp=np))

  def theirs(self, key: str, value: Any) -> np.ndarray:
    if isinstance(value, Item):
      given = self.module.input_package().items
      value = given.Item(value.value, value.unit)
    return self.reader.pixels(key, value).numpy()

  def read(self, key: str, value: Any) -> np.ndarray:
    """What both sides make of an input."""
    ours, theirs = self.ours(key, value), self.theirs(key, value)
    np.testing.assert_array_equal(ours, theirs)
    return theirs

  def refuse(self, key: str, value: Any) -> str:
    """What both sides say about an input that they refuse."""
    with pytest.raises(DecodeError) as ours:
      self.ours(key, value)
    with pytest.raises(ValueError, match=r".") as theirs:
      self.theirs(key, value)
    assert str(ours.value) == str(theirs.value)
    assert "\n" not in str(theirs.value)
    return str(theirs.value)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
  return Sides(tmp_path_factory.mktemp("code"))


def scene(rows: int = 24, columns: int = 40) -> np.ndarray:
  """Another colour in each corner."""
  y, x = np.mgrid[:rows, :columns] / [[[rows]], [[columns]]]
  return np.stack([250 * y, 250 * x, 120 * (x + y)], -1).astype(np.uint8)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


# ------------------------------------------------------------------- pictures
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("jpeg", {"quality": 95, "subsampling": 0}),
    ("png", {}),
    ("webp", {"lossless": True}),
  ],
)
def test_orientation(sides, tmp_path, kind, options, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = file_of(Image.fromarray(scene()), kind, exif=exif, **options)
  path = tmp_path / f"a.{kind}"
  path.write_bytes(data)
  upright = media_upright(Image.open(io.BytesIO(data)), orientation)
  want = sides.read("image", np.asarray(upright))
  opened = Image.open(path)
  loaded = Image.open(path)
  loaded.load()
  for given in (path, str(path), data, opened, loaded, [opened]):
    np.testing.assert_array_equal(sides.read("image", given), want)
  rotated = sides.read("image", np.asarray(opened.convert("RGB")))
  assert (np.abs(rotated - want).max() > 0.1) == (orientation > 1)


def media_upright(image: Image.Image, orientation: int) -> np.ndarray:
  """By the definition of EXIF: where row 0 and column 0 lie."""
  x = np.asarray(image.convert("RGB"))
  if orientation >= 5:
    x = x.swapaxes(0, 1)
  flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1)}
  rows, columns = (flips | {8: (-1, 1)}).get(orientation, (1, 1))
  return x[::rows, ::columns]


def see_through(kind: str, hidden: int) -> bytes:
  """A blue square; the ground is transparent, with a hidden colour."""
  x = np.full((16, 16, 4), hidden, np.uint8)
  x[..., 3] = 0
  x[4:12, 4:12] = (0, 0, 255, 255)
  image = Image.fromarray(x)
  if kind == "LA":
    x[4:12, 4:12] = (9, 9, 9, 255)
    return file_of(Image.fromarray(x).convert("LA"), "png")
  if kind == "palette":
    flat = Image.new("P", (16, 16), 1)
    flat.putpalette([0, 0, 255, hidden, hidden, hidden])
    flat.paste(0, (4, 4, 12, 12))
    return file_of(flat, "png", transparency=1)
  if kind == "gif":
    flat = Image.new("P", (16, 16), 1)
    flat.putpalette([0, 0, 255, hidden, hidden, hidden])
    flat.paste(0, (4, 4, 12, 12))
    return file_of(flat, "gif", transparency=1)
  if kind == "webp":
    return file_of(image, "webp", lossless=True, exact=True)
  return file_of(image, "png")


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "gif", "webp"])
def test_transparency_is_white(sides, kind):
  want = np.full((16, 16, 3), 255, np.uint8)
  want[4:12, 4:12] = 9 if kind == "LA" else (0, 0, 255)
  want = sides.read("image", want)
  for hidden in (0, 200):
    data = see_through(kind, hidden)
    np.testing.assert_array_equal(sides.read("image", data), want)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(sides.read("image", opened), want)


def test_frames_as_arrays_tensors_and_lists(sides):
  x = scene(16, 16)
  want = sides.read("image", x)
  for same in (torch.as_tensor(x), x[None], [x], [Image.fromarray(x)]):
    np.testing.assert_array_equal(sides.read("image", same), want)
  clip = sides.read("video", [x, Image.fromarray(x[::-1])])
  assert clip.shape == (2, 16, 16, 3)
  assert sides.read("image", x[..., 0]).shape == (1, 16, 16, 3)


PICTURES_REFUSED = {
  "floats of bytes": lambda: scene().astype(np.float32),
  "normalised floats": lambda: scene() / 127.5 - 1,
  "bool": lambda: scene() > 9,
  "complex": lambda: scene() * 1j,
  "four channels": lambda: np.zeros((8, 8, 4), np.uint8),
  "channels first or last": lambda: np.zeros((2, 3, 3, 3), np.uint8),
  "no rows": lambda: np.zeros((0, 8, 3), np.uint8),
  "sixteen bits": lambda: file_of(
    Image.fromarray(np.full((8, 8), 999, np.uint16)), "png"
  ),
  "opened sixteen bits": lambda: Image.fromarray(
    np.full((8, 8), 999, np.uint16)
  ),
  "cut": lambda: file_of(Image.fromarray(scene()), "png")[:-40],
  "empty": lambda: b"",
  "text": lambda: b"hello",
  "missing list": lambda: [],
  "number": lambda: 3,
  "nothing": lambda: None,
}


@pytest.mark.parametrize("name", PICTURES_REFUSED)
def test_refused_pictures(sides, name):
  sides.refuse("image", PICTURES_REFUSED[name]())


def test_colours_as_floats_and_channels_first(sides):
  expected = sides.read("image", scene())
  for value in (scene() / 255, np.moveaxis(scene() / 255, -1, 0)):
    np.testing.assert_array_equal(sides.read("image", value), expected)


def test_an_opened_png_of_unknown_bits_is_refused(sides):
  data = file_of(Image.new("L", (8, 8), 7), "png", transparency=7)
  white = sides.read("image", np.full((8, 8), 255, np.uint8))
  np.testing.assert_array_equal(sides.read("image", data), white)
  opened = Image.open(io.BytesIO(data))
  assert "give the path" in sides.refuse("image", opened)
  given = opened.convert("RGBA")
  np.testing.assert_array_equal(sides.read("image", given), white)


def test_normals(sides):
  rng = np.random.default_rng(0)
  n = rng.standard_normal((20, 30, 3)).astype(np.float32)
  n /= np.linalg.norm(n, axis=-1, keepdims=True)
  counts = np.rint((n + 1) * 127.5).astype(np.uint8)
  want = sides.read("normal", counts)
  for same in (n, torch.as_tensor(n), n.astype(np.float64)):
    np.testing.assert_allclose(sides.read("normal", same), want, atol=0.01)
  out = io.BytesIO()
  np.save(out, n)
  np.testing.assert_array_equal(
    sides.read("normal", out.getvalue()), sides.read("normal", n)
  )
  sides.refuse("normal", 2 * n)
  sides.refuse("normal", n * np.nan)
  sides.refuse("normal", n[..., :2])


# ---------------------------------------------------------------------- depth
def test_depth_in_its_units(sides, tmp_path):
  metres = np.linspace(0.5, 9, 20 * 30, dtype=np.float32).reshape(20, 30)
  counts = np.rint(1000 * metres).astype(np.uint16)
  metres = (counts / 1000).astype(np.float32)
  want = sides.read("depth", metres)
  path = tmp_path / "d.png"
  Image.fromarray(counts).save(path)
  np.save(tmp_path / "d.npy", metres[..., None])
  same = {
    "tensor": torch.as_tensor(metres),
    "trained": torch.as_tensor(metres).requires_grad_(),
    "bfloat16": torch.as_tensor(metres).bfloat16(),
    "bfloat16 of JAX": jnp.asarray(metres, jnp.bfloat16),
    "one channel": metres[..., None],
    "one map": metres[None],
    "list": [metres],
    "millimetres": Item(counts, "millimetre"),
    "opened": Item(Image.open(path), "millimetre"),
    "path": f"mm:{path}",
    "named": f"depth:mm:{path}",
    "npy": f"m:{tmp_path / 'd.npy'}",
  }
  for name, given in same.items():
    got = sides.read("depth", given)
    limit = 1e-2 if "bfloat16" in name else 1e-3
    np.testing.assert_allclose(got, want, atol=limit, err_msg=name)


@pytest.mark.parametrize(
  "made",
  [
    lambda x: np.ma.array(x, mask=x > 3),
    lambda x: [x, np.ma.array(x, mask=x > 3)],
    lambda x: ["mm:d.png", x],
    lambda x: np.stack([np.tile(x, (2, 2))] * 5, -1),
    lambda x: x.astype(np.uint16),
    lambda x: torch.as_tensor(x.astype(np.int32)),
    lambda x: [x.astype(np.uint16)],
    lambda x: file_of(Image.fromarray(x.astype(np.uint16)), "png"),
    lambda x: Image.fromarray(x.astype(np.uint16)),
    lambda x: x > 3,
    lambda x: x * 1j,
    lambda x: np.stack([x] * 3, -1),
    lambda x: x * np.nan,
    lambda x: -x,
    lambda x: Item(1000 * x, "metre"),
    lambda x: Item(x.astype(np.uint8), "metre"),
    lambda x: Item(x, "inch"),
    lambda x: "d.png",
    lambda x: "mm:/nowhere/d.png"[3:],
  ],
)
def test_refused_depth(sides, made):
  x = np.linspace(1, 9, 20 * 30, dtype=np.float32).reshape(20, 30)
  sides.refuse("depth", made(x))


# ---------------------------------------------------------------------- sound
def tone(seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
  t = np.arange(int(seconds * RATE)) / RATE
  return (0.4 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
  """16-bit sound [N, C]."""
  out = io.BytesIO()
  with wave.open(out, "wb") as file:
    file.setnchannels(samples.shape[1])
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(np.rint(samples * 32768).astype("<i2").tobytes())
  return out.getvalue()


def test_the_shorter_axis_is_channels(sides):
  left, right = tone(hz=300), tone(hz=2000)
  want = sides.read("audio", left)
  for same in (
    np.stack([left, right]),
    np.stack([left, right], 1),
    torch.stack([torch.as_tensor(left), torch.as_tensor(right)]),
    (torch.as_tensor(left)[None], RATE),
    (left.astype(np.float64), float(RATE)),
  ):
    np.testing.assert_array_equal(sides.read("audio", same), want)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_integers_are_shares_of_full_scale(sides, dtype):
  x = (0.5 * tone()).astype(np.float64)
  scale = -float(np.iinfo(dtype).min)
  counts = np.rint(x * scale).astype(dtype)
  want = sides.read("audio", (counts / scale).astype(np.float32))
  np.testing.assert_allclose(sides.read("audio", counts), want, atol=1e-4)
  sides.read("audio", torch.as_tensor(counts))


def test_the_centre_of_six_channels_is_heard(sides, tmp_path):
  x = np.zeros((RATE // 2, 6), np.float32)
  x[:, 2] = tone()
  path = tmp_path / "six.wav"
  path.write_bytes(wav(x))
  silence = sides.read("audio", np.zeros_like(x))
  for given in (x, x.T, path):
    assert np.abs(sides.read("audio", given) - silence).max() > 0.3


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_files_and_arrays_of_sound_agree(sides, tmp_path, rate):
  x = np.rint(tone() * 32767) / 32768
  path = tmp_path / "a.wav"
  path.write_bytes(wav(x[:, None], rate))
  want = sides.read("audio", (x.astype(np.float32), rate))
  np.testing.assert_allclose(sides.read("audio", path), want, atol=1e-3)


SOUND_REFUSED = {
  "uint8": lambda: np.zeros(900, np.uint8),
  "int64": lambda: np.zeros(900, np.int64),
  "bool": lambda: tone() > 0,
  "complex": lambda: tone() * 1j,
  "square": lambda: np.zeros((5, 5), np.float32),
  "three axes": lambda: np.zeros((1, 2, 900), np.float32),
  "wide": lambda: np.zeros((65, 900), np.float32),
  "nan": lambda: tone() * np.float32("nan"),
  "infinite": lambda: torch.full((900,), float("inf")),
  "huge": lambda: tone() * np.float32(1e30),
  "counts as floats": lambda: tone() * 32768,
  "empty": lambda: tone()[:0],
  "slow": lambda: (tone(), 10),
  "fast": lambda: (tone(), 2 * 10**9),
  "half a hertz": lambda: (tone(), 8000.5),
  "true": lambda: (tone(), True),
  "no sound": lambda: b"RIFF....WAVE",
  "missing": lambda: "nowhere.wav",
}


@pytest.mark.parametrize("name", SOUND_REFUSED)
def test_refused_sound(sides, name):
  if name == "missing":  # worded by what reads paths
    for read in (sides.ours, sides.theirs):
      with pytest.raises(ValueError, match=r"nowhere\.wav: "):
        read("audio", "nowhere.wav")
    return
  sides.refuse("audio", SOUND_REFUSED[name]())


def test_sound_is_cut_at_max_seconds(tmp_path):
  sides = Sides(tmp_path, max_seconds=0.2)
  x = np.concatenate([tone(0.2, 300), tone(0.6, 3000)])
  x = np.rint(x * 32768) / np.float32(32768)
  want = sides.read("audio", x[: RATE // 5])
  for given in (x, np.stack([x, x]), torch.as_tensor(x)):
    np.testing.assert_array_equal(sides.read("audio", given), want)
  np.testing.assert_array_equal(sides.read("audio", wav(x[:, None])), want)


def test_a_missing_package_is_named(sides, monkeypatch):
  data = wav(tone()[:, None])
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(ImportError, match="pip install av"):
    sides.theirs("audio", data)


# ---------------------------------------------------------------- shared cases
@pytest.fixture(name="case")
def _case(cases_dir):
  """Name of a case -> its file."""
  return lambda name: next(iter(sorted(cases_dir.glob(f"*/{name}"))))


@pytest.mark.parametrize(
  ("key", "name", "same"),
  [
    ("image", "exif6.jpg", "exif6_upright.png"),
    ("image", "exif6.png", "upright.png"),
    ("image", "alpha.png", "alpha_on_white.png"),
    ("image", "alpha_black.png", "alpha_on_white.png"),
    ("image", "blacklogo_transparent.png", ""),
    ("normal", "n.npy", ""),
    ("audio", "six_channels.flac", ""),
    ("audio", "vbr_noxing.mp3", ""),
    ("audio", "cbr_noxing.mp3", ""),
    ("audio", "piped.flac", ""),
    ("audio", "sound.m4a", ""),
    ("audio", "av_offset.mp4", ""),
    ("video", "av_offset.mp4", ""),
    ("video", "phone.mp4", "up.mp4"),
    ("video", "rot90.mp4", ""),
    ("video", "editlist.mp4", ""),
    ("video", "vfr.mp4", ""),
  ],
)
def test_cases_are_read_alike(sides, case, key, name, same):
  got = sides.read(key, case(name))
  assert np.isfinite(got).all()
  if same:
    np.testing.assert_array_equal(got, sides.read(key, case(same)))
  opened = key == "image" and sides.read(key, Image.open(case(name)))
  if key == "image":
    np.testing.assert_array_equal(opened, got)


def test_a_transparent_logo_is_not_black(sides, case):
  got = sides.read("image", case("blacklogo_transparent.png"))
  assert np.abs(got - sides.read("image", np.zeros_like(scene()))).max() > 1


@pytest.mark.parametrize(
  ("key", "name"),
  [
    ("audio", "huge1e30.wav"),
    ("audio", "rate2e9.wav"),
    ("depth", "d_npybomb.npy"),
  ],
)
def test_cases_are_refused_alike(sides, case, key, name):
  path = case(name)
  sides.refuse(key, f"m:{path}" if key == "depth" else path)


def test_a_map_with_one_channel_is_one_map(sides, case):
  path = case("d_hw1.npy")
  array = np.load(path)
  if array.dtype.kind != "f":
    pytest.skip("the case holds no metres")
  want = sides.read("depth", array[..., 0])
  np.testing.assert_array_equal(sides.read("depth", array), want)
  np.testing.assert_array_equal(sides.read("depth", f"m:{path}"), want)


# ----------------------------------------------------------------- the package
def test_copies_import_nothing_of_this_package():
  for name, text in torch_inputs.files().items():
    assert not re.search(r"^\s*(from|import) mico_jax", text, re.M), name
    compile(text, name, "exec")


def test_copies_run_without_the_types_of_arrays(tmp_path):
  folder = tmp_path / torch_inputs.PACKAGE
  folder.mkdir()
  for name, text in torch_inputs.files().items():
    (folder / name).write_text(text)
  modules = [f"{folder.name}.{path.stem}" for path in folder.glob("*.py")]
  code = (
    "import importlib, sys; sys.modules['jaxtyping'] = None\n"
    f"for name in {modules}: importlib.import_module(name)"
  )
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_an_import_that_stays_behind_is_named():
  with pytest.raises(ValueError, match=r"modalities/x\.py imports mico_jax\.k"):
    torch_inputs.check_imports("def f():\n  import mico_jax.kernels\n", "x.py")
  with pytest.raises(ValueError, match=r"imports mico_jax\.models"):
    torch_inputs.check_imports("from mico_jax.models import build\n", "x.py")


def test_the_model_file_alone_says_what_is_missing(tmp_path):
  (tmp_path / exporter.MODULE).write_text(exporter.template())
  module = exporter.load_module(tmp_path)
  with pytest.raises(ImportError, match="mico_inputs is missing"):
    module.input_package()


# ------------------------------------------------------------ the whole model
@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A checkpoint loaded here, and its exported folder."""
  config = tiny_config()
  config = dataclasses.replace(
    config,
    generation=dataclasses.replace(
      config.generation, num_beams=3, length_penalty=0.1, max_new_tokens=5
    ),
  )
  path = save_tiny(tmp_path_factory.mktemp("w"))
  folder = tmp_path_factory.mktemp("exported")
  source = export.open_source(path)
  checkpoint = dataclasses.replace(source.checkpoint, config=config)
  source = dataclasses.replace(source, checkpoint=checkpoint)
  exporter.write(source, folder, export.ExportReport("torch", {}))
  load = exporter.load_module(folder).MiCo.from_folder
  ours = mico_jax.load(path, check="off")
  ours.config = config
  return ours, load(folder), load, folder


def alike(ours: Any, theirs: Any) -> None:
  assert set(ours) == set(theirs)
  for key, value in ours.items():
    np.testing.assert_allclose(value, theirs[key].numpy(), atol=LIMIT)


def test_embeddings_of_raw_inputs_agree(models, tmp_path):
  ours, theirs, *_ = models
  path = tmp_path / "a.png"
  Image.fromarray(scene()).save(path)
  inputs = {
    "text": "cat",
    "image": Image.open(path),
    "video": [[scene(), scene()[::-1]]],
    "audio": (np.stack([tone(), tone(hz=900)]), RATE),
    "depth": scene()[..., 0].astype(np.float32) / 30,
    "normal": path,
  }
  a, b = ours.embed(**inputs), theirs.embed(**inputs)
  assert {k: len(v) for k, v in b.items()} == dict.fromkeys(inputs, 1)
  alike(a, b)
  pair = {"image": [path, scene()], "audio": [tone(), (tone(), 8000)]}
  alike(ours.embed(groups="va", **pair), theirs.embed(groups=["va"], **pair))
  assert theirs.embed(text=[])["text"].shape == (0, 32)
  assert theirs.caption(image=[]) == []
  texts = ["a cat", "dogs"]
  np.testing.assert_allclose(
    ours.match(text=texts, **pair),
    theirs.match(text=texts, **pair).numpy(),
    atol=LIMIT,
  )


def test_captions_weigh_length_as_ours(models):
  ours, theirs, *_ = models
  image = [scene(), scene()[::-1].copy()]
  options = {"num_beams": 3, "max_new_tokens": 5}
  assert theirs.caption(image=image) == ours.caption(image=image)
  same = theirs.caption(image=image, length_penalty=0.1, **options)
  assert theirs.caption(image=image) == same
  scores = []
  for penalty in (0.1, 2.0):
    want = ours.caption(image=image, length_penalty=penalty, **options)
    assert theirs.caption(image=image, length_penalty=penalty, **options) == (
      want
    )
    context = theirs.context_of({"image": image})
    _, found = theirs.generate(context, length_penalty=penalty, **options)
    scores.append(found)
  assert not torch.allclose(*scores)


def test_drawn_captions(models):
  ours, theirs, *_ = models
  image = [scene(), scene()[::-1].copy()]
  draw = lambda **how: theirs.caption(image=image, num_beams=1, **how)
  greedy = ours.caption(image=image, num_beams=1)
  assert draw(top_p=1e-6) == draw(top_p=1.0, temperature=1e-7) == greedy
  assert draw(top_p=1.0, seed=1) == draw(top_p=1.0, seed=1)
  assert draw(top_p=1.0, seed=1) != draw(top_p=1.0, seed=2)


def test_drawn_tokens_follow_the_nucleus(models):
  """0.5 + 0.3 are less than 0.85; the third of four tokens completes it."""
  module, rows = sys.modules[type(models[1]).__module__], 4000
  special = {"sep": 0, "pad": 3, "cls": 3}
  search = module.NucleusSearch(special, 1.0, torch.full((rows, 1), 3))
  search.draw_from(0.85, 0.5, seed=0)
  shares = torch.tensor([0.12, 0.5, 0.3, 0.08])
  search.step((shares.log() * 0.5).tile(rows, 1, 1))
  tokens = [row[0][-1] for row in search.sequences]
  ended = sum(search.done)
  found = np.array([ended, tokens.count(1), tokens.count(2)]) / rows
  expected = np.array([0.12, 0.5, 0.3]) / 0.92
  limit = 4 * np.sqrt(expected * (1 - expected) / rows)
  assert (np.abs(found - expected) < limit).all()
  assert found.sum() == 1.0


@pytest.mark.parametrize(
  "options",
  [
    {"num_beams": 0},
    {"num_beams": 65},
    {"max_new_tokens": 0},
    {"max_new_tokens": -1},
    {"length_penalty": float("nan")},
    {"top_p": 1.5},
    {"temperature": 0},
    {"seed": -1},
    {"top_p": 0.5, "num_beams": 2},
  ],
)
def test_searches_are_bounded_alike(models, options):
  said = []
  for model in models[:2]:
    with pytest.raises(ValueError, match=r"must be a|2 beams") as error:
      model.caption(image=[scene()], **options)
    said.append(str(error.value))
  assert said[0] == said[1]


def test_a_text_alone_matches_nothing(models):
  for model in models[:2]:
    with pytest.raises(ValueError, match="no inputs given"):
      model.match(text=["a cat"])


MISUSED = {
  "masked": {"image": [np.ma.array(scene(), mask=scene() > 5)]},
  "bare and masked": {"image": np.ma.array(scene(), mask=scene() > 5)},
  "an image and a number": {"image": (scene(), 3)},
  "nothing": {},
  "unknown": {"smell": [1]},
  "several frames": {"image": np.zeros((2, 8, 8, 3), np.uint8)},
  "a number": {"image": 3},
  "empty text": {"text": " "},
  "a lone surrogate": {"text": "\ud800"},
  "number as text": {"text": [5]},
  "group": {"groups": "va", "image": [np.zeros((8, 8, 3), np.uint8)]},
  "unequal": {
    "groups": "va",
    "image": [np.zeros((8, 8, 3), np.uint8)] * 2,
    "audio": [np.zeros(900, np.float32)],
  },
}


@pytest.mark.parametrize("name", MISUSED)
def test_what_ours_refuses_is_refused(models, name):
  for model in models[:2]:
    with pytest.raises(ValueError, match=r".") as error:
      model.embed(**MISUSED[name])
    assert "\n" not in str(error.value)


def test_outputs_that_are_not_finite_are_refused(models):
  _, _, load, folder = models
  model = load(folder)
  with torch.no_grad():
    model.matching_head.dense2.weight.fill_(float("nan"))
    model.contrastive_head["v"].weight.fill_(float("inf"))
    model.text.lm_head.bias.fill_(float("nan"))
  x = {"image": [scene()]}
  with pytest.raises(ValueError, match=r"ndarray>: the embedding of the model"):
    model.embed(**x)
  with pytest.raises(ValueError, match="the matching probability of the"):
    model.match(text="a", **x)
  with pytest.raises(ValueError, match="the caption's score of the model"):
    model.caption(**x)
