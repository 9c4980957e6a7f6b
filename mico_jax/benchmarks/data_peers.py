"""Ours against other loaders on the same JPEG pictures, in alternating turns.

Each decodes, crops 80 to 100% of the area, flips half of the pictures, resizes
and stacks one batch after the other, in this process.
"""

from __future__ import annotations

import importlib.util
import io
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mico_jax.config import Config
from mico_jax.data.samples import geometry
from mico_jax.modalities import MODALITIES, DecodeError, Geometry

MOST = 256  # pictures; more would measure the same
_BATCH = 32
_QUALITY = 90  # of pictures that are not stored as JPEG


@runtime_checkable
class Session(Protocol):
  """A run whose data sources are open, as `mico_jax.run.setup.Session`."""

  @property
  def config(self) -> Config:
    """Of the run."""
    ...

  @property
  def tokenizer(self) -> Any:
    """Of its texts."""
    ...

  @property
  def sources(self) -> Mapping[str, Any]:
    """Its open sources, by name."""
    ...


Run = Callable[[], int]  # reads all pictures; returns their number
Make = Callable[[Sequence[bytes], int, pathlib.Path], Run]


def pictures(session: Session, count: int) -> list[bytes]:
  """Up to `count` pictures of the sources as JPEG files.

  Those that are stored otherwise, and first frames of videos, are encoded.
  """
  files: list[bytes] = []
  for name, source in session.sources.items():
    for index in range(min(count - len(files), len(source))):
      try:
        media = source.record(index).media
        key = next((k for k in ("image", "video") if k in media), "")
        if key:
          files.append(_as_jpeg(session, name, key, media[key]()))
      except (DecodeError, OSError):
        continue
  return files


def _as_jpeg(session: Session, source: str, key: str, raw: Any) -> bytes:
  if isinstance(raw, bytes) and raw.startswith(b"\xff\xd8"):
    return raw
  sizes = geometry(session.config, key, source, draft=True)
  (frame,) = MODALITIES[key].decode(raw, sizes).take([0])
  file = io.BytesIO()
  Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY)
  return file.getvalue()


# ------------------------------------------------------------------------ ours
def _ours(mode: str) -> Make:
  def make(files: Sequence[bytes], size: int, folder: pathlib.Path) -> Run:
    del folder
    modality, sizes = MODALITIES["image"], Geometry(1, size)
    host = modality.modes[mode].host

    def run() -> int:
      for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        batch = np.empty((len(part), 1, size, size, 3), np.uint8)
        for i, data in enumerate(part):
          rng = np.random.default_rng(start + i)
          batch[i] = host(modality.decode(data, sizes), sizes, rng)
      return len(files)

    return run

  return make


# ----------------------------------------------------------------------- peers
def _with_pillow(
  image: Image.Image, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "Y X 3"]:
  """The augmentation with Pillow alone, as users of other loaders write it."""
  image = image.convert("RGB")
  width, height = image.size
  side = (width * height * rng.uniform(0.8, 1.0)) ** 0.5
  side = max(1, min(round(side), width, height))
  left = int(rng.integers(0, width - side + 1))
  top = int(rng.integers(0, height - side + 1))
  image = image.crop((left, top, left + side, top + side))
  image = image.resize((size, size), Image.Resampling.BILINEAR)
  if rng.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image)


def _webdataset(files: Sequence[bytes], size: int, folder: pathlib.Path) -> Run:
  import torch
  import webdataset

  path = folder / "pictures.tar"
  with tarfile.open(path, "w") as tar:
    for i, data in enumerate(files):
      info = tarfile.TarInfo(f"{i:06d}.jpg")
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  rng = np.random.default_rng(0)
  dataset = (
    webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    .decode("pil")
    .to_tuple("jpg")
    .map(lambda sample: np.array(_with_pillow(sample[0], size, rng)))
  )
  loader = torch.utils.data.DataLoader(
    dataset, batch_size=_BATCH, num_workers=0
  )
  return lambda: sum(len(batch) for batch in loader)


def _grain(files: Sequence[bytes], size: int, folder: pathlib.Path) -> Run:
  import grain

  del folder

  def load(data: bytes, rng: np.random.Generator) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
      return _with_pillow(image, size, rng)

  dataset = (
    grain.MapDataset.source(list(files))
    .seed(0)
    .random_map(load)
    .batch(_BATCH)
    .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
  )
  return lambda: sum(len(batch) for batch in dataset)


def _tf_data(files: Sequence[bytes], size: int, folder: pathlib.Path) -> Run:
  import tensorflow as tf  # type: ignore[import-not-found]

  del folder

  def load(data: Any) -> Any:
    shape = tf.shape(tf.io.decode_jpeg(data, channels=3))
    pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    area = tf.cast(shape[0] * shape[1], tf.float32)
    side = tf.sqrt(area * tf.random.uniform((), 0.8, 1.0))
    side = tf.minimum(tf.cast(side, tf.int32), tf.minimum(shape[0], shape[1]))
    pixels = tf.image.random_crop(pixels, (side, side, 3))
    pixels = tf.image.resize(pixels, (size, size), antialias=True)
    pixels = tf.image.random_flip_left_right(pixels)
    return tf.cast(tf.round(pixels), tf.uint8)

  dataset = tf.data.Dataset.from_tensor_slices(list(files))
  dataset = dataset.map(load, num_parallel_calls=2).batch(_BATCH).prefetch(1)
  return lambda: sum(len(batch) for batch in dataset.as_numpy_iterator())


PEERS: Mapping[str, tuple[Make, tuple[str, ...]]] = {
  "webdataset": (_webdataset, ("webdataset", "torch")),
  "grain": (_grain, ("grain",)),
  "tf.data": (_tf_data, ("tensorflow",)),
}
_NAMES = {
  "webdataset": "WebDataset + DataLoader, Pillow",
  "grain": "Grain, Pillow",
  "tf.data": "tf.data",
}
MODES = ("crop_flip_smooth", "crop_flip")


def missing(peer: str) -> str:
  """Packages that a peer needs and that are not installed; "": none."""
  needed = PEERS[peer][1]
  return ", ".join(n for n in needed if importlib.util.find_spec(n) is None)


def compare(
  files: Sequence[bytes], size: int, *, peers: Sequence[str], turns: int
) -> list[dict[str, Any]]:
  """CPU time and rate of ours and of the peers.

  Args:
    files: JPEG pictures.
    size: of the result, in pixels.
    peers: names in `PEERS`; one that is not installed says so.
    turns: of each, after one that does not count.
  """
  with tempfile.TemporaryDirectory() as folder:
    makes = {f"mico_jax {mode}": _ours(mode) for mode in MODES}
    makes |= {_NAMES[p]: PEERS[p][0] for p in peers if not missing(p)}
    runs = {n: m(files, size, pathlib.Path(folder)) for n, m in makes.items()}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
      for name, run in runs.items():
        begin, begin_cpu = time.perf_counter(), time.process_time()
        count = run()
        spent_cpu = time.process_time() - begin_cpu
        if turn:
          cpu[name].append(spent_cpu / count)
          wall[name].append((time.perf_counter() - begin) / count)
  ours = cpu[f"mico_jax {MODES[0]}"]
  rows: list[dict[str, Any]] = [
    {
      "implementation": name,
      "pictures": len(files),
      "cpu_ms": 1000 * statistics.median(cpu[name]),
      "samples_per_second": 1 / statistics.median(wall[name]),
      "cpu_of_ours": statistics.median(
        theirs / mine for theirs, mine in zip(cpu[name], ours, strict=True)
      ),
    }
    for name in runs
  ]
  for peer in peers:
    if packages := missing(peer):
      rows.append({"implementation": _NAMES[peer], "not_installed": packages})
  return rows
