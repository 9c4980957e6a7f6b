"""CPU time of decoders on the same files, in alternating turns.

  python -m mico_jax.benchmarks.decoders --sides 256 640 1024 2048
  python -m mico_jax.benchmarks.decoders --video clip.mp4
  python -m mico_jax.benchmarks.decoders --sound

Pictures are decoded whole and with `data.inputs.image.draft`, then cropped to
224 pixels; videos give eight frames, by this package and by torchcodec where it
is installed. Five seconds of FLAC at 44.1 kHz are decoded, and filtered to one
slice of 224 frames or sent as waveform. One thread each; differences are of
pixel values 0..255, of sound in pixels as the encoder sees them.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from mico_jax.modalities import Geometry
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.image import IMAGE
from mico_jax.modalities.video import VIDEO

SIZE = 224  # pixels that the encoder sees
FRAMES = 8  # of a video
_SEEDS = 8  # crops that are compared
_QUALITY = 90

Run = Callable[[int], Shaped[np.ndarray, "..."]]  # of the number of the call


def photo(side: int) -> bytes:
  """A JPEG of `side` rows with structure of every size, as photos have."""
  rng = np.random.default_rng(side)
  shape = (side * 4 // 3, side)
  picture = np.zeros((side, shape[0], 3))
  for step, share in ((256, 0.5), (64, 0.25), (16, 0.15), (4, 0.1)):
    cells = (max(2, side // step), max(2, shape[0] // step), 3)
    noise = Image.fromarray(rng.integers(0, 256, cells, np.uint8))
    picture += share * np.asarray(noise.resize(shape, Image.Resampling.BICUBIC))
  out = io.BytesIO()
  pixels = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
  pixels.save(out, "JPEG", quality=_QUALITY)
  return out.getvalue()


def turns(runs: Mapping[str, Run], count: int, calls: int) -> dict[str, Any]:
  """CPU milliseconds of a call: medians, minima, and ratios to the first.

  Args:
    runs: by name.
    count: turns.
    calls: in each turn.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    run(0)
  for _ in range(count):
    for name, run in runs.items():
      begin = time.process_time()
      for i in range(calls):
        run(i)
      times[name].append((time.process_time() - begin) * 1000 / calls)
  first = times[next(iter(runs))]
  return {
    name: {
      "cpu_ms": round(statistics.median(values), 2),
      "least": round(min(values), 2),
      "ratio": round(
        statistics.median(a / b for a, b in zip(first, values, strict=True)), 2
      ),
    }
    for name, values in times.items()
  }


def jpeg(side: int, mode: str, draft: float, count: int) -> dict[str, Any]:
  """A picture of `side` rows, decoded whole and reduced, then cropped.

  Args:
    side: rows of the file.
    mode: preprocessing of training.
    draft: see `InputConfig.draft`.
    count: turns.
  """
  data, image = photo(side), IMAGE
  host = image.modes[mode].host
  sizes = {"whole": Geometry(1, SIZE), "draft": Geometry(1, SIZE, draft=draft)}

  def make(sizes: Geometry) -> Run:
    return lambda seed: host(
      image.decode(data, sizes), sizes, np.random.default_rng(seed)
    )

  runs = {name: make(geometry) for name, geometry in sizes.items()}
  crops = [
    np.stack([run(seed) for seed in range(_SEEDS)]).astype(np.float32)
    for run in runs.values()
  ]
  plain = [
    image.modes["plain"].host(image.decode(data, g), g, None).astype(np.float32)
    for g in sizes.values()
  ]
  return {
    "rows": side,
    "decoded": image.decode(data, sizes["draft"]).take([0]).shape[1],
    "mode": mode,
    **turns(runs, count, max(1, 8000 // side)),
    "difference_of_crops": round(float(np.abs(crops[0] - crops[1]).mean()), 2),
    "difference_of_the_whole": round(
      float(np.abs(plain[0] - plain[1]).mean()), 2
    ),
  }


def video(data: bytes, count: int) -> dict[str, Any]:
  """Eight frames of a video, by each decoder that is installed.

  Args:
    data: content of the file.
    count: turns.
  """
  modality, geometry = VIDEO, Geometry(FRAMES, SIZE)
  total = len(modality.decode(data, geometry))
  indices = [int((i + 0.5) * total / FRAMES) for i in range(FRAMES)]
  runs: dict[str, Run] = {
    "mico_jax": lambda _: modality.decode(data, geometry).take(indices)
  }
  missing = ""
  try:
    from torchcodec.decoders import VideoDecoder
  except (ImportError, OSError, RuntimeError) as error:
    missing = " ".join(str(error).split())[:200]
  else:
    runs["torchcodec"] = lambda _: (
      VideoDecoder(data, dimension_order="NHWC", num_ffmpeg_threads=1)
      .get_frames_at(indices)
      .data.numpy()
    )
  frames = [run(0).astype(np.float32) for run in runs.values()]
  return {
    "frames": total,
    **turns(runs, count, 1),
    "difference": round(float(np.abs(frames[0] - frames[-1]).mean()), 3),
    **({"no_torchcodec": missing} if missing else {}),
  }


def sound(count: int) -> dict[str, Any]:
  """Sound to the array that travels, filtered here or on the device.

  Args:
    count: turns.
  """
  import soundfile

  rng, out = np.random.default_rng(0), io.BytesIO()
  fading = 0.05 * 0.9 ** np.arange(60)  # louder below, as most sounds
  wave = np.convolve(rng.normal(size=5 * 44100), fading, "same")
  soundfile.write(out, wave, 44100, format="FLAC", subtype="PCM_16")
  data, audio, geometry = out.getvalue(), AUDIO, Geometry(1, SIZE)

  def make(mode: str) -> Run:
    host = audio.modes[mode].host
    return lambda _: host(audio.decode(data, geometry), geometry, None)

  names = ("plain", "plain_on_device")
  runs = {"decode": lambda _: audio.decode(data, geometry)}
  runs = {name: make(name) for name in names} | runs
  pixels = [
    audio.modes[name].to_pixels(runs[name](0), geometry=geometry, xp=np)
    for name in names
  ]
  gaps = np.abs(pixels[0] - pixels[1])[0, ..., 0]
  return {
    "nbytes": {name: runs[name](0).nbytes for name in names},
    **turns(runs, count, 20),
    "differences": {
      "median": float(np.median(gaps)),
      "most": float(gaps.max()),
    },
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one JSON object a line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sides", type=int, nargs="*", default=[])
  parser.add_argument("--mode", default="crop_flip_smooth")
  parser.add_argument("--draft", type=float, default=1.25)
  parser.add_argument("--video", nargs="*", default=[])
  parser.add_argument("--sound", action="store_true")
  parser.add_argument("--turns", type=int, default=7)
  args = parser.parse_args(argv)
  for side in args.sides:
    print(json.dumps(jpeg(side, args.mode, args.draft, args.turns)))
  for name in args.video:
    data = pathlib.Path(name).read_bytes()
    print(json.dumps({"file": name, **video(data, args.turns)}))
  if args.sound:
    print(json.dumps(sound(args.turns)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
