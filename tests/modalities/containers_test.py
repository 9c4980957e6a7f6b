"""Sound and pictures of one file, and files that are damaged at random."""

from __future__ import annotations

import dataclasses
import io
import time

import numpy as np
import pytest
import soundfile

from mico_jax.modalities import MODALITIES, DecodeError, Geometry
from mico_jax.testing.media import file_of, greys, tone

GEOMETRY = Geometry(2, 32)


def _sound(data, geometry=GEOMETRY):
  return MODALITIES["audio"].decode(data, geometry)


def _beep(seconds, at, rate=16000):
  """Silence with a tone of 0.1 s that begins at `at` s."""
  wave = np.zeros(round(seconds * rate), np.float32)
  first = round(at * rate)
  wave[first : first + rate // 10] = tone(0.1, rate, 1000)
  return wave


def _begin(x):
  return np.flatnonzero(np.abs(x) > 0.2)[0] / 16000


@pytest.mark.parametrize(
  ("kind", "codec", "sound_codec", "rate"),
  [
    ("mp4", "libx264", "aac", 16000),
    ("mov", "libx264", "pcm_s16le", 16000),
    ("matroska", "libx264", "libopus", 48000),
    ("webm", "libvpx", "libopus", 48000),
    ("mpegts", "libx264", "aac", 48000),
    ("avi", "mpeg4", "pcm_s16le", 16000),
  ],
)
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_sound_covers_the_interval_of_the_pictures(
  kind, codec, sound_codec, rate, start
):
  """Four seconds of sound from `start` on; two seconds of pictures."""
  if kind == "avi" and start:
    pytest.skip("AVI stores no start of a stream")
  data = file_of(
    kind,
    greys([10 * i for i in range(20)]),
    _beep(4.0, 1.0, rate),
    codec=codec,
    sound_codec=sound_codec,
    sound_rate=rate,
    sound_start=start,
  )
  x = _sound(data)
  assert len(MODALITIES["video"].decode(data, GEOMETRY)) == 20
  assert len(x) == 32000
  assert _begin(x) == pytest.approx(1.0 + start, abs=0.06)


def test_sound_that_ends_early_is_followed_by_silence():
  frames = greys([10 * i for i in range(20)])
  data = file_of("mp4", frames, tone(1.0), codec="libx264")
  x = _sound(data)
  assert len(x) == 32000
  assert np.abs(x[:16000]).max() > 0.4
  assert np.abs(x[20000:]).max() == 0


def test_one_limit_for_sound_and_pictures():
  data = file_of(
    "mp4", greys(range(0, 200, 10)), _beep(2.0, 0.3), codec="libx264"
  )
  audio = dataclasses.replace(GEOMETRY.audio, max_seconds=0.8)
  geometry = dataclasses.replace(GEOMETRY, audio=audio)
  assert len(MODALITIES["video"].decode(data, geometry)) == 8
  assert len(_sound(data, geometry)) == 0.8 * 16000


def test_a_single_picture_sets_no_interval():
  data = file_of("mp4", greys([90]), _beep(3.0, 2.0), codec="libx264")
  x = _sound(data)
  assert len(x) / 16000 == pytest.approx(3.0, abs=0.07)
  assert _begin(x) == pytest.approx(2.0, abs=0.07)


def test_no_sound_says_so():
  with pytest.raises(DecodeError, match="no sound"):
    _sound(file_of("mp4", greys([90, 80]), codec="libx264"))


def test_playlists_open_nothing():
  """Formats that name other files are not read."""
  for text in (
    "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/hostname\n",
    "ffconcat version 1.0\nfile /etc/hostname\n",
  ):
    for key in ("audio", "video"):
      with pytest.raises(DecodeError, match="not a readable"):
        MODALITIES[key].decode(text.encode(), GEOMETRY)


def _seeds():
  """(modality, bytes) of each kind."""
  out = io.BytesIO()
  soundfile.write(out, tone(0.4), 16000, format="OGG")
  frames = greys(range(0, 200, 10), (32, 32))
  sound = tone(0.5, 48000)
  yield "audio", out.getvalue()
  for kind, codec in (
    ("wav", "pcm_s16le"),
    ("flac", "flac"),
    ("mp3", "libmp3lame"),
    ("ipod", "aac"),
    ("ogg", "libopus"),
    ("adts", "aac"),
    ("aiff", "pcm_s16be"),
    ("wav", "adpcm_ima_wav"),
  ):
    yield (
      "audio",
      file_of(kind, sound=sound, sound_codec=codec, sound_rate=48000),
    )
  for kind, codec, sound_codec in (
    ("mp4", "libx264", "aac"),
    ("matroska", "libx264", "aac"),
    ("webm", "libvpx-vp9", "libopus"),
    ("avi", "mpeg4", "pcm_s16le"),
    ("mpegts", "libx264", "aac"),
    ("mov", "png", "pcm_s16le"),
    ("flv", "flv", "libmp3lame"),
    ("gif", "gif", ""),
  ):
    data = file_of(
      kind,
      frames,
      sound[:22050] if sound_codec else None,
      codec=codec,
      sound_codec=sound_codec,
      sound_rate=44100 if kind == "flv" else 48000,
      pixels={"png": "rgba", "gif": "rgb8"}.get(codec, ""),
    )
    yield "video", data
    if sound_codec:
      yield "audio", data


def damaged(data, rng):
  """The bytes with one kind of damage, most of it near the start."""
  data = bytearray(data)
  kind = rng.integers(0, 5)
  at = int(len(data) * rng.random() ** 3)
  if kind == 0:
    del data[at:]
  elif kind == 1:
    for place in rng.integers(0, len(data), 1 + len(data) // 200):
      data[place] = rng.integers(0, 256)
  elif kind == 2:
    data[at] ^= 1 << rng.integers(0, 8)
  elif kind == 3:
    data[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)])
  else:
    data[at:at] = bytes(rng.integers(0, 256, 64, np.uint8))
  return bytes(data)


def test_damaged_files_decode_or_say_why():
  rng = np.random.default_rng(7)
  for key, data in _seeds():
    modality = MODALITIES[key]
    for _ in range(12):
      begin = time.perf_counter()
      try:
        decoded = modality.decode(damaged(data, rng), GEOMETRY)
        array = modality.modes["plain"].host(decoded, GEOMETRY, None)
        assert np.isfinite(array).all()
      except DecodeError as error:
        if "\n" in str(error):
          raise
      assert time.perf_counter() - begin < 5.0
