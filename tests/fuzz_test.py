"""Every parser on damaged and lying files: documented errors, in bounds.

Each starts from small whole files, which a few draws of Hypothesis flip, cut,
fill or give other sizes in their headers. The draws are the same in every run;
MICO_JAX_FUZZ=N makes N other ones of each kind.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import resource
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st
from PIL import Image

from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data import packed
from mico_jax.data.references import FileReader
from mico_jax.data.sources import SOURCES
from mico_jax.data.storage import Storage
from mico_jax.data.tokenizer import read_omniworld_model, tokenizer_from_files
from mico_jax.interop.files import safetensors_writer, torch_writer
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import WeightsError, item
from mico_jax.modalities import MODALITIES, DecodeError, Geometry, as_columns
from mico_jax.testing import media, tiny_data

# No strategy here does; threads that clients of stores keep draw from it while
# one runs.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Do not use the `random` module:"
  "hypothesis.errors.HypothesisDeprecationWarning"
)

KINDS = ("flip", "size", "cut", "head", "insert", "copy")
SECONDS, GIB = 5.0, 2**30
EXAMPLES = int(os.environ.get("MICO_JAX_FUZZ", "0"))
SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def fuzzed(examples: int) -> Callable[[Any], Any]:
  """Runs a test on `examples` draws, or as many as the variable says."""
  return hypothesis.settings(
    max_examples=EXAMPLES or examples,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=(hypothesis.Phase.generate,),
  )


@st.composite
def damaged(draw: Any, seeds: Mapping[str, bytes]) -> bytes:
  """A whole file with a few changes."""
  data = seeds[draw(st.sampled_from(sorted(seeds)))]
  for _ in range(draw(st.integers(1, 4))):
    size = max(len(data), 1)
    early = st.integers(0, min(size, 200))  # where headers are
    at = draw(st.one_of(early, st.integers(0, size)))
    kind = draw(
      st.sampled_from(["flip", "size", "cut", "head", "insert", "copy"])
    )
    if kind == "flip":
      data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    elif kind == "size":
      width = draw(st.sampled_from((1, 2, 4, 8)))
      value = draw(st.sampled_from(SIZES)) % 256**width
      order: Any = draw(st.sampled_from(("little", "big")))
      data = data[:at] + value.to_bytes(width, order) + data[at + width :]
    elif kind == "cut":
      data = data[:at]
    elif kind == "head":
      data = data[at:]
    elif kind == "insert":
      data = data[:at] + draw(st.binary(max_size=40)) + data[at:]
    else:
      data = data[:at] + data[: draw(st.integers(0, size))] + data[at:]
  return data


def in_bounds(call: Callable[[], Any], *documented: type[Exception]) -> None:
  """Calls; nothing but documented errors, little time and memory."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  # Of the processor: the machine may have other work.
  began, message = time.process_time(), "no error"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      call()
    except documented as error:
      message = str(error)
  assert message
  assert "\n" not in message
  assert time.process_time() - began < SECONDS
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  assert after - before < GIB


# ----------------------------------------------------------------------- media
def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
  out = io.BytesIO()
  values = np.arange(16 * 24 * 4, dtype=np.uint32).reshape(16, 24, 4)
  array = (values % 251).astype(np.uint8)
  if mode == "I;16":
    image = Image.fromarray((values[..., 0] * 37 % 9000).astype(np.uint16))
  else:
    image = Image.fromarray(array, "RGBA").convert(mode)
  image.save(out, kind, **options)
  return out.getvalue()


def npy(array: np.ndarray) -> bytes:
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def sound(kind: str) -> bytes:
  out = io.BytesIO()
  wave = media.tone(0.25)
  if kind == "wav float":
    soundfile.write(out, wave, 16000, format="WAV", subtype="FLOAT")
  else:
    soundfile.write(out, wave, 16000, format=kind)
  return out.getvalue()


def rgb_files() -> dict[str, bytes]:
  return {
    "png": picture("png"),
    "palette": picture("png", "P"),
    "alpha": picture("png", "RGBA"),
    "jpeg": picture("jpeg"),
    "progressive": picture("jpeg", progressive=True),
    "gif": picture("gif", "P"),
    "webp": picture("webp", "RGBA"),
    "tiff": picture("tiff"),
    "bmp": picture("bmp"),
    "npy": npy(np.zeros((8, 9, 3), np.uint8)),
  }


SERIES = [key for key, m in MODALITIES.items() if m.rated and m.named]


def series(key: str) -> dict[str, bytes]:
  """Files of a series of 40 samples, with all channels that it may have."""
  names = MODALITIES[key].channels or ("a", "b")
  values = np.arange(40 * len(names)).reshape(40, -1) % 7 - 3.0
  rows = [",".join(("time", *names))]
  for i, row in enumerate(values):
    time = i / (MODALITIES[key].rate or 1.0)
    rows.append(",".join([f"{time:g}", *(f"{x:g}" for x in row)]))
  out = io.BytesIO()
  np.savez(out, values=values, channels=np.array(names))
  return {
    "npy": npy(values),
    "npz": out.getvalue(),
    "csv": "\n".join(rows).encode(),
  }


def npz(**arrays: np.ndarray) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def cube() -> bytes:
  """Reflectance of nine pixels in two bands."""
  values = np.full((3, 3, 2), 0.4, np.float32)
  return npz(cube=values, wavelengths=np.array([500.0, 900.0]))


def graph() -> dict[str, list]:
  """Three nodes in a row, with two features each."""
  return {
    "node_features": [[1, 2.5], [0, 1], [3, 4]],
    "edge_index": [[0, 1], [1, 2]],
  }


def clouds() -> dict[str, bytes]:
  """Files of a cloud of 40 points with colours; PLY where it can be read."""
  x = np.arange(240).reshape(40, 6) * 7 % 31
  files = {"npy": npy(x), "npz": npz(points=x[:, :3], colors=x[:, 3:])}
  with contextlib.suppress(ImportError):
    import plyfile

    rows = np.zeros(40, [(n, "f4") for n in "xyz"])
    rows["x"], rows["y"], rows["z"] = x.T[:3]
    out = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(out)
    files["ply"] = out.getvalue()
  return files


FILES: dict[str, Callable[[], dict[str, bytes]]] = {
  "image": rgb_files,
  "normal": lambda: {
    "png": picture("png"),
    "npy": npy(np.full((8, 9, 3), 3**-0.5, np.float32)),
  },
  "depth": lambda: {
    "png": picture("png", "I;16"),
    "npy": npy(np.ones((8, 9), np.float32)),
    "counts": npy(np.full((8, 9), 1500, np.uint16)),
  },
  "audio": lambda: {
    **{k: sound(k) for k in ("WAV", "wav float", "FLAC", "OGG", "MP3", "AIFF")},
    "mp4": media.file_of("mp4", sound=media.tone(0.25)),
  },
  "video": lambda: {
    "mp4": media.file_of("mp4", media.greys(range(0, 60, 10), (16, 16))),
    "mkv": media.file_of("matroska", media.greys(range(0, 60, 10), (16, 16))),
    "avi": media.file_of("avi", media.greys(range(0, 60, 10), (16, 16))),
  },
}
FILES |= {key: functools.partial(series, key) for key in SERIES}
FILES |= {
  "thermal": lambda: {
    "tiff": picture("tiff", "I;16"),
    "npy": npy(np.full((8, 9), 300, np.float32)),
  },
  "xray": lambda: {"png": picture("png", "I;16"), "tiff": picture("tiff", "L")},
  "pointcloud": clouds,
  "hyperspectral": lambda: {
    "npy": npy(np.full((7, 7, 2), 0.5, np.float32)),
    "npz": cube(),
  },
  "graph": lambda: {
    "json": json.dumps(graph()).encode(),
    "npz": npz(**{k: np.array(v) for k, v in graph().items()}),
  },
  "tabular": lambda: {
    "csv": b"a,b\n1.5,x\n,y\n",
    "json": b'{"b": "x", "a": 2.5}',
  },
}
UNITS = ("metre", "millimetre", "relative")
# What is stated of the files of the other modalities.
STATED = {"thermal": "counts", "xray": "monochrome1,16", "graph": "features"}


def use(key: str, data: bytes, unit: str = "metre") -> None:
  """Decodes and preprocesses a file, as `embed` does."""
  modality = MODALITIES[key]
  if key != "depth":
    unit = STATED.get(key, next(iter(modality.units), ""))
  channels = ("a", "b") if modality.named and not modality.channels else ()
  if modality.needs_channels:
    channels = ("500", "900") if key != "graph" else channels
  columns = as_columns((("a", 1, 2, 3), ("b", "x", "y")))
  geometry = Geometry(
    *(2, 16),
    unit=unit,
    rate=modality.rate,
    channels=channels,
    columns=columns if modality.check_columns else (),
  )
  decoded = modality.decode(data, geometry)
  name = modality.native_modes.get(unit, "") if key in STATED else ""
  array = modality.mode(name, train=False).host(decoded, geometry, None)
  assert isinstance(array, np.ndarray)


def test_every_modality_of_files_is_fuzzed():
  assert set(FILES) == {
    key for key, m in MODALITIES.items() if m.kind == "knowledge"
  }


@pytest.mark.parametrize("key", FILES)
def test_media_files(key):
  seeds = FILES[key]()
  units = st.sampled_from(UNITS if key == "depth" else UNITS[:1])
  for name, data in seeds.items():  # whole, they can be used
    unit = "millimetre" if name in ("png", "counts") else "metre"
    use(key, data, unit)

  @fuzzed(60)
  @hypothesis.given(damaged(seeds), units)
  def run(data: bytes, unit: str) -> None:
    in_bounds(lambda: use(key, data, unit), DecodeError)

  run()


# --------------------------------------------------------------------- sources
def read_all(kind: str, path: pathlib.Path) -> None:
  """Opens a source and reads all that its records name."""
  spec = SourceConfig(kind=kind, path=str(path), split="", depth_unit="metre")
  config = Config(data=DataConfig(sources={"x": spec}))
  source = SOURCES[kind].open("x", spec, config)
  for i in range(min(len(source), 8)):
    try:
      record = source.record(i)
      record.read(tuple(record.media))
    except DecodeError:
      continue


def test_manifests(tmp_path):
  lines = [
    {"id": "a", "image": "a.png", "caption": "a cube", "label": 3},
    {"id": "b", "image": ["a.png", "a.png"], "captions": {"omni": ["x", "y"]}},
    {"id": "c", "depth": "d.npz:x[1]", "questions": [["what", "cube"]]},
    {"id": "d", "audio": "t.tar:a.wav", "negatives": {"omni": ["z"]}},
  ]
  text = "".join(json.dumps(x) + "\n" for x in lines).encode()
  (tmp_path / "a.png").write_bytes(tiny_data.png(3))
  np.savez(tmp_path / "d.npz", x=np.ones((2, 4, 4), np.float32))
  path = tmp_path / "set.jsonl"
  path.write_bytes(text)
  read_all("manifest", path)

  @fuzzed(80)
  @hypothesis.given(damaged({"set": text}))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    in_bounds(lambda: read_all("manifest", path), ConfigError, DecodeError)

  run()


JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9),
            st.floats(), st.sampled_from(("a.png", "a.npz:x", "t.tar:m"))),
  lambda x: st.one_of(st.lists(x, max_size=3),
                      st.dictionaries(st.text(max_size=4), x, max_size=3)),
  max_leaves=6,
)  # fmt: skip
FIELDS = ("id", "image", "depth", "caption", "captions", "negatives",
          "questions", "question", "answer", "label", "split",
          "subtitle")  # fmt: skip


def test_records_of_any_types(tmp_path):
  path = tmp_path / "set.jsonl"

  @fuzzed(120)
  @hypothesis.given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1))
  def run(fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields) + "\n")
    in_bounds(lambda: read_all("manifest", path), ConfigError, DecodeError)

  run()


def tar(files: Mapping[str, bytes]) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return out.getvalue()


def test_tar_shards(tmp_path):
  files = {"a.png": tiny_data.png(3), "a.txt": b"a cube", "b.cls": b"3",
           "b.json": b'{"caption": "x"}', "c/d.jpg": b"none"}  # fmt: skip
  path = tmp_path / "set.tar"
  path.write_bytes(tar(files))
  read_all("webdataset", path)

  @fuzzed(80)
  @hypothesis.given(damaged({"tar": tar(files)}))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    in_bounds(lambda: read_all("webdataset", path), ConfigError, DecodeError)

  run()


def test_arrays_of_npz_files(tmp_path):
  plain, small = io.BytesIO(), io.BytesIO()
  np.savez(plain, x=np.ones((2, 4, 4), np.float32))
  np.savez_compressed(small, x=np.ones((2, 4, 4), np.float32))
  seeds = {"plain": plain.getvalue(), "compressed": small.getvalue()}
  path = tmp_path / "a.npz"

  @fuzzed(80)
  @hypothesis.given(damaged(seeds))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    files = FileReader(str(tmp_path), "", Storage(), "x")
    in_bounds(lambda: files.read("a.npz:x[1]"), DecodeError)

  run()


def test_packed_records():
  media_of = {"image": tiny_data.png(3), "depth": np.ones((4, 4), np.float32)}
  blob = packed.pack("a", {"caption": "a cube"}, media_of)

  def read(data: bytes) -> None:
    record = packed.unpack(data, SourceConfig(kind="array_record"))
    record.read(tuple(record.media))

  read(blob)

  @fuzzed(120)
  @hypothesis.given(damaged({"blob": blob}))
  def run(data: bytes) -> None:
    in_bounds(lambda: read(data), DecodeError)

  run()


# --------------------------------------------------------------------- weights
with contextlib.suppress(ImportError):  # what is timed below is no import
  import torch  # noqa: F401


def weights(path: pathlib.Path) -> None:
  for tensor in open_tensors(path).values():
    tensor.load()


def test_safetensors(tmp_path):
  path = tmp_path / "x.safetensors"
  arrays = {"a": np.ones((2, 3), np.float32), "b": np.arange(4)}
  safetensors_writer.write_arrays(path, arrays)
  seed = path.read_bytes()

  @fuzzed(120)
  @hypothesis.given(damaged({"file": seed}))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    in_bounds(lambda: weights(path), WeightsError)

  run()


def script_archive() -> bytes:
  """A zip that is taken for TorchScript, of a pickle of one tensor."""
  out = io.BytesIO()
  pickled = (
    b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00actorch._utils\n"
    b"_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00(K\x02K\x03t(K\x03K\x01"
    b"t\x89ccollections\nOrderedDict\n)RtRub."
  )
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("m/data.pkl", pickled)
    archive.writestr("m/code/x.py", b"")
    archive.writestr("m/data/0", np.ones(6, np.float32).tobytes())
  return out.getvalue()


def test_torch_script_archives(tmp_path):
  path = tmp_path / "x.pt"
  path.write_bytes(script_archive())
  weights(path)

  @fuzzed(120)
  @hypothesis.given(damaged({"file": script_archive()}))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    in_bounds(lambda: weights(path), WeightsError)

  run()


@pytest.mark.parity
def test_torch_archives(tmp_path):
  pytest.importorskip("torch")
  path = tmp_path / "x.pt"
  torch_writer.write(path, [item("a", np.ones((2, 3), np.float32))])
  weights(path)

  @fuzzed(80)
  @hypothesis.given(damaged({"file": path.read_bytes()}))
  def run(data: bytes) -> None:
    path.write_bytes(data)
    in_bounds(lambda: weights(path), WeightsError)

  run()


# ------------------------------------------------------------------ tokenizers
VOCABULARY = "\n".join(
  ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "cube", "."]
).encode()


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_tokenizer_files(kind):
  wordpiece = kind == "wordpiece"
  name = "vocab.txt" if wordpiece else "sentencepiece.model"
  content = VOCABULARY if wordpiece else read_omniworld_model()
  meta = json.dumps({"kind": kind}).encode()

  def use_it(meta: bytes, content: bytes) -> None:
    found = tokenizer_from_files({"tokenizer.json": meta, name: content})
    found.decode(found.encode("a cube ab. 日本", 12), skip_special=False)

  use_it(meta, content)

  @fuzzed(60)
  @hypothesis.given(damaged({"meta": meta}), damaged({"content": content}))
  def run(other: bytes, changed: bytes) -> None:
    in_bounds(lambda: use_it(other, content), ValueError)
    in_bounds(lambda: use_it(meta, changed), ValueError)

  run()
