"""Case preprocess: files to the arrays that the original fed its encoder.

The media lie beside the folder, in `../media`. Each kind of output has its own
function, which reads sizes from the output's name and shape.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from mico_jax.config import AudioConfig
from mico_jax.modalities import (
  Geometry,
  audio,
  media,
  sound,
  spatial,
  video_file,
)
from mico_jax.testing.golden.case import (
  Check,
  Folder,
  Missing,
  log_mels,
  pixels_of,
)

IMAGE_LIMIT = 1e-4
RESAMPLE_LIMIT = 5e-5
SCALE = 2 * AudioConfig().std  # by which slices are divided
KINDS = ((".jpeg", ".jpg", ".png"), (".flac", ".wav"), (".mp4", ".webm"))


@dataclasses.dataclass(frozen=True)
class Media:
  """The files that a folder's numbers were made from."""

  folder: Folder

  def _data(self, kind: int, key: str) -> bytes | None:
    """The file that the config names under a key, or the first of its kind."""
    about = self.folder.config.get(key)
    name = about.get("file") if isinstance(about, Mapping) else about
    place = self.folder.path.parent / "media"
    files = sorted(place.iterdir()) if place.is_dir() else []
    for path in files:
      if path.name == name or (not name and path.suffix in KINDS[kind]):
        return path.read_bytes()
    return None

  @functools.cached_property
  def image(self) -> UInt8[np.ndarray, "Y X 3"] | None:
    """The image as decoded here."""
    data = self._data(0, "image")
    return None if data is None else media.decode_image(data, Geometry(1, 224))

  @functools.cached_property
  def waveform(self) -> Float[np.ndarray, " N"] | None:
    """The sound at 16 kHz."""
    data = self._data(1, "audio")
    return None if data is None else sound.decode_audio(data, Geometry(1, 224))

  @functools.cached_property
  def video(self) -> spatial.Clip | None:
    """The video."""
    data = self._data(2, "video")
    return (
      None if data is None else video_file.decode_video(data, Geometry(1, 224))
    )


def preprocess(folder: Folder) -> Iterator[Check | Missing]:
  """Images, filterbanks, slices, resampling, video frames, frame indices."""
  files = Media(folder)
  yield from _constants(folder.config.get("constants", {}))
  for name, want in folder.outputs.items():
    kind, _, rest = name.partition(".")
    if kind == "image":
      yield _image(folder, files, rest, want)
    elif kind == "video":
      yield _video(files, rest, want)
    elif kind == "audio":
      yield from _audio(folder, files, rest, want)
    elif kind.startswith("short"):
      yield from _short(folder, kind, rest, want)
    else:
      yield Missing(name, f"a reading of the name {name!r}")
  for key, table in folder.config.get("frame_indices", {}).items():
    wanted = int(key.rpartition("=")[2])
    lengths = [int(n) for n in table]
    got = [spatial.sample_frames(n, wanted) for n in lengths]
    want = np.array(list(table.values()))
    yield Check(f"frame_indices.{key}", np.stack(got), want, 0.0)


def _constants(stored: Mapping[str, Any]) -> Iterator[Check]:
  """Means and deviations, to the last digit: no limit on arrays is as sharp."""
  config = AudioConfig()
  ours = {
    "clip_mean": spatial.CLIP[0],
    "clip_std": spatial.CLIP[1],
    "imagenet_mean": spatial.IMAGENET[0],
    "imagenet_std": spatial.IMAGENET[1],
    "audio_mean": config.mean,
    "audio_std": config.std,
  }
  for key in ours.keys() & stored.keys():
    yield Check(f"constants.{key}", ours[key], stored[key], 0.0)


def _pixels(
  frames: Shaped[np.ndarray, "T Y X 3"], stats: spatial.Stats
) -> Float[np.ndarray, "T 3 Y X"]:
  return np.moveaxis(spatial.normalise(frames, stats, np), -1, 1)


def _antialiased(
  frames: Float[np.ndarray, "1 Y X 3"], size: tuple[int, int]
) -> Float[np.ndarray, "1 _ _ 3"]:
  """Antialiased resize of float frames, channel by channel."""
  rows, columns = size
  channels = [
    np.asarray(
      Image.fromarray(frames[0, ..., c]).resize(
        (columns, rows), Image.Resampling.BILINEAR
      )
    )
    for c in range(3)
  ]
  return np.stack(channels, axis=-1)[None]


def _image(
  folder: Folder, files: Media, rest: str, want: Shaped[np.ndarray, "..."]
) -> Check | Missing:
  """`<statistics>[.res<N>][.crop_flip_eval][.antialias_true...]`."""
  name = f"image.{rest}"
  if rest == "decoded_rgb_uint8":
    if files.image is None:
      return Missing(name, "the image, in a sibling folder media")
    return Check(name, files.image, want, 1.0)
  size = re.search(r"\bres(\d+)", rest)
  pixels = pixels_of(rest.partition(".")[0])
  stored = folder.outputs.get("image.decoded_rgb_uint8", files.image)
  if size is None or pixels is None or stored is None:
    return Missing(name, f"a reading of the name {name!r}, and the image")
  stats, exact = pixels
  side = int(size.group(1))
  frames = stored[None]
  if "antialias_true" in rest:
    scaled = frames.astype(np.float32) / np.float32(255)
    frames = _antialiased(scaled, (side, side))
  elif "crop_flip_eval" in rest:
    resize = spatial.resize_exact
    frames, _ = spatial.crop_flip(frames, side, resize, None)
  else:
    mode, geometry = spatial.VISUAL_MODES[exact], Geometry(1, side)
    host = mode.host(spatial.ArrayClip(frames), geometry, None)
    got = np.moveaxis(mode.to_pixels(host, geometry=geometry, xp=np), -1, 1)
    return Check(name, got[_corner(want)], want, IMAGE_LIMIT)
  return Check(name, _pixels(frames, stats)[_corner(want)], want, IMAGE_LIMIT)


def _corner(want: Shaped[np.ndarray, "..."]) -> tuple[slice, ...]:
  """The top left part of a picture that is stored."""
  return tuple(slice(n) for n in want.shape)


def _video(
  files: Media, rest: str, want: Shaped[np.ndarray, "..."]
) -> Check | Missing:
  """`n<frames>.<what>`."""
  name = f"video.{rest}"
  match = re.match(r"n(\d+)\.(.+)$", rest)
  if files.video is None or match is None:
    return Missing(name, "the video, in a sibling folder media")
  clip, what = files.video, match.group(2)
  frames = clip.take(
    spatial.sample_frames(len(clip), int(match.group(1))).tolist()
  )
  every, size = re.search(r"every(\d+)", what), re.match(r"res(\d+)", what)
  if what.startswith("raw_rgb") and every is not None:
    step = int(every.group(1))
    return Check(name, frames[:, ::step, ::step], want, 1.0)
  side = int(size.group(1)) if size is not None else 224
  pixels = _pixels(spatial.resize_exact(frames, (side, side)), spatial.CLIP)
  if what == "mean_per_frame_channel":
    pixels = pixels.mean(axis=(2, 3), dtype=np.float64)
  elif what == "std_per_frame_channel":
    pixels = _deviation(pixels, want)
  elif size is None:
    return Missing(name, f"a reading of the name {name!r}")
  return Check(name, pixels, want, IMAGE_LIMIT)


def _deviation(
  pixels: Float[np.ndarray, "T 3 Y X"], want: Float[np.ndarray, "T 3"]
) -> Float[np.ndarray, "T 3"]:
  """By frame and channel; unbiased, as torch has it, where that is closer."""
  pixels = pixels.astype(np.float64)
  deviations = [pixels.std(axis=(2, 3), ddof=n) for n in (0, 1)]
  return min(deviations, key=lambda x: np.abs(x - want).max())


def _slices(
  waveform: Float[np.ndarray, " N"], args: Mapping[str, Any]
) -> Float[np.ndarray, "..."]:
  """The original's audio processor by way of mode `mico_demo`."""
  config = dataclasses.replace(AudioConfig(), mel_bins=args["melbins"])
  size, rows = args.get("resize_melbin_num", 224), args["target_length"]
  geometry = Geometry(args["sample_num"], size, config)
  if rows == size:
    mode = audio.AUDIO.mode("mico_demo")
    host = mode.host(waveform, geometry, None)
    return mode.to_pixels(host, geometry=geometry, xp=np)[..., 0]
  slices = audio.log_mel_slices(
    waveform, geometry, slice_frames=rows, extra_slice=True
  )
  return slices / np.float32(2 * config.std)


def _audio(
  folder: Folder, files: Media, rest: str, want: Shaped[np.ndarray, "..."]
) -> Iterator[Check | Missing]:
  """`fbank<bins>[_every<k>]`, `proc.<...>` or `waveform_first_<n>`."""
  name = f"audio.{rest}"
  if files.waveform is None:
    yield Missing(name, "the sound, in a sibling folder media")
    return
  bank = re.match(r"fbank(\d+)(?:_every(\d+))?$", rest)
  first = re.match(r"waveform_first_(\d+)$", rest)
  if bank is not None:
    bins, every = int(bank.group(1)), int(bank.group(2) or 1)
    got = sound.fbank(files.waveform, bins, AudioConfig())[::every]
    yield from log_mels(name, got, want)
  elif first is not None:
    yield Check(name, files.waveform[None, : want.shape[-1]], want, 1e-6)
  else:
    items = folder.config.get("audio_processor", [])
    item = next((i for i in items if i.get("tensor") == name), {})
    args = _sizes(name) | item.get("args", {})
    if not {"melbins", "target_length", "sample_num"} <= args.keys():
      yield Missing(name, f"a reading of the name {name!r}")
      return
    got = _slices(files.waveform, args)
    stored = str(item.get("stored", ""))
    steps = [int(n) for n in re.findall(r"every (\d+)", stored)]
    if steps:
      got = got[:, :: steps[0], :: steps[-1]]
    yield from log_mels(name, got, want, SCALE)


def _sizes(name: str) -> dict[str, int]:
  """Arguments of the original's audio processor that an output's name tells."""
  words = {
    "melbins": "mel",
    "target_length": "len",
    "sample_num": "n",
    "resize_melbin_num": "resize",
  }
  matches = {
    key: re.search(rf"(?<![a-z]){word}(\d+)", name)
    for key, word in words.items()
  }
  return {name: int(match[1]) for name, match in matches.items() if match}


def _short(
  folder: Folder, kind: str, rest: str, want: Shaped[np.ndarray, "..."]
) -> Iterator[Check | Missing]:
  """Synthetic sounds at several rates: resampled, filtered, sliced."""
  name = f"{kind}.{rest}"
  items = folder.config.get("short_audio", [])
  item = next((i for i in items if i.get("name") == kind), {})
  waveform, rate = (
    folder.outputs.get(f"{kind}.waveform"),
    item.get("sample_rate"),
  )
  if waveform is None or rate is None:
    yield Missing(name, f"the waveform and the sample_rate of {kind}")
    return
  if rest == "waveform":
    config = dataclasses.replace(AudioConfig(), sample_rate=rate)
    got = sound.decode_audio((waveform.T, rate), Geometry(1, 32, config))
    yield Check(name, got, want[0], 0.0)
    return
  decoded = sound.decode_audio((waveform.T, rate), Geometry(1, 32))
  # From the stored samples: the resampling has a line of its own.
  if (stored := folder.outputs.get(f"{kind}.resampled_16000")) is not None:
    decoded = stored[0]
  if rest.startswith("resampled"):
    target = AudioConfig().sample_rate
    got = np.stack([sound.resample(x, rate, target) for x in waveform])
    yield Check(name, got, want, RESAMPLE_LIMIT)
  elif rest == "fbank":
    got = sound.fbank(decoded, want.shape[1], AudioConfig())
    yield from log_mels(name, got, want)
  elif rest == "out":
    # The shape tells all but the bins before they are resized.
    args = dict(
      zip(("sample_num", "target_length"), want.shape[:2], strict=True),
      resize_melbin_num=want.shape[2],
      melbins=folder.outputs.get(f"{kind}.fbank", want).shape[-1],
    )
    got = _slices(decoded, args | item.get("args", {}))
    yield from log_mels(name, got, want, SCALE)
  else:
    yield Missing(name, f"a reading of the name {name!r}")
