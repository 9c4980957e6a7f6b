"""Sound of every kind of file: its whole length, its channels, its limits."""

from __future__ import annotations

import dataclasses
import io
import struct
import time

import numpy as np
import pytest
import soundfile

from mico_jax.modalities import MODALITIES, DecodeError, Geometry, sound
from mico_jax.modalities.audio import log_mel_slices
from mico_jax.testing.media import file_of, tone

GEOMETRY = Geometry(2, 32)
MEAN = dataclasses.replace(
  GEOMETRY, audio=dataclasses.replace(GEOMETRY.audio, channel="mean")
)


def _decode(raw, geometry=GEOMETRY):
  return MODALITIES["audio"].decode(raw, geometry)


def _refused(raw, match, geometry=GEOMETRY):
  with pytest.raises(DecodeError, match=match) as error:
    _decode(raw, geometry)
  assert "\n" not in str(error.value)


def _is_tone(x, seconds, hz=440, slack=0.05):
  assert abs(len(x) / 16000 - seconds) <= slack
  assert np.abs(np.fft.rfft(x)).argmax() * 16000 / len(x) == pytest.approx(
    hz, abs=1
  )
  loud = np.abs(x[800:-800]).reshape(-1, 100)[:-1] if len(x) % 100 == 0 else x
  assert np.abs(loud).max() > 0.4


def _ogg(seconds, hz=440, rate=16000):
  out = io.BytesIO()
  soundfile.write(out, tone(seconds, rate, hz), rate, format="OGG")
  return out.getvalue()


def _wav(samples, rate=16000, subtype="PCM_16"):
  out = io.BytesIO()
  soundfile.write(out, samples, rate, format="WAV", subtype=subtype)
  return out.getvalue()


def _flac_promising(samples, total):
  """A FLAC file whose header says `total` samples; 0: unknown (streamed)."""
  data = bytearray(file_of("flac", sound=samples, sound_codec="flac"))
  head = int.from_bytes(data[18:26], "big") >> 36 << 36
  data[18:26] = (head | total).to_bytes(8, "big")
  return bytes(data)


@pytest.mark.parametrize(
  ("kind", "codec", "rate"),
  [
    ("mp4", "aac", 44100),
    ("ipod", "aac", 16000),
    ("mov", "pcm_s16le", 44100),
    ("mp4", "libmp3lame", 44100),
    ("matroska", "libopus", 48000),
    ("webm", "libopus", 48000),
    ("avi", "pcm_s16le", 44100),
    ("mpegts", "aac", 44100),
    ("adts", "aac", 44100),
    ("mp3", "libmp3lame", 44100),
    ("ogg", "libopus", 48000),
    ("ogg", "flac", 44100),
    ("aiff", "pcm_s16be", 44100),
    ("wav", "pcm_u8", 22050),
    ("wav", "pcm_alaw", 8000),
    ("wav", "pcm_s24le", 48000),
    ("wav", "pcm_f32le", 48000),
  ],
)
def test_every_container_is_read_to_its_end(kind, codec, rate):
  data = file_of(
    kind, sound=tone(2.0, rate), sound_codec=codec, sound_rate=rate
  )
  _is_tone(_decode(data), 2.0)


def test_fragmented_mp4_and_streamed_matroska():
  for kind, codec, options in (
    ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    ("matroska", "libopus", {"live": "1"}),
  ):
    data = file_of(
      kind,
      sound=tone(2.0, 48000),
      sound_codec=codec,
      sound_rate=48000,
      options=options,
    )
    _is_tone(_decode(data), 2.0)


@pytest.mark.parametrize("xing", ["0", "1"])
def test_mp3_lengths_are_those_of_its_frames(xing):
  rng = np.random.default_rng(0)
  quiet, loud = tone(2.0, 44100), 0.3 * rng.normal(size=88200)
  wave = np.concatenate([quiet, loud.astype(np.float32)])
  data = file_of(
    "mp3",
    sound=wave,
    sound_codec="libmp3lame",
    sound_rate=44100,
    options={"write_xing": xing, "id3v2_version": "0"},
  )
  assert len(_decode(data)) / 16000 == pytest.approx(4.0, abs=0.06)
  assert len(_decode(data + data)) / 16000 == pytest.approx(8.0, abs=0.12)


@pytest.mark.parametrize("codec", ["vorbis", "libopus", "flac"])
def test_chained_ogg_is_read_link_by_link(codec):
  links = []
  for hz in (440, 880):
    rate = 48000 if codec == "libopus" else 16000
    if codec == "vorbis":
      links.append(_ogg(1.0, hz))
      continue
    wave = tone(1.0, rate, hz)
    links.append(file_of("ogg", sound=wave, sound_codec=codec, sound_rate=rate))
  x = _decode(b"".join(links))
  assert len(x) == 32000
  _is_tone(x[:16000], 1.0, 440)
  _is_tone(x[16000:], 1.0, 880)


def test_links_of_other_rates():
  x = _decode(_ogg(1.0, 440, 44100) + _ogg(1.0, 880, 8000))
  assert len(x) == 32000
  _is_tone(x[:16000], 1.0, 440)
  _is_tone(x[16000:], 1.0, 880)


def test_flac_headers():
  wave = tone(2.0)
  for total in (0, 16000, 32000):  # streamed, too few, right
    assert len(_decode(_flac_promising(wave, total))) == 32000
  _refused(_flac_promising(wave, 40000), "32000 of 40000 samples")


@pytest.mark.parametrize("kind", ["wav", "aiff", "flac", "mp4", "matroska"])
def test_cut_files_say_so(kind):
  codec = {"aiff": "pcm_s16be", "flac": "flac", "wav": "pcm_s16le"}
  rng = np.random.default_rng(0)
  wave = rng.normal(0, 0.1, 32000).astype(np.float32)
  data = file_of(
    kind,
    sound=wave,
    sound_codec=codec.get(kind, "aac"),
    options={"movflags": "faststart"} if kind == "none" else {},
  )
  _refused(data[: len(data) * 6 // 10], r"cut short.* \d+ .* \d+ ")
  _decode(data)


@pytest.mark.parametrize("kind", ["AU", "CAF", "W64", "RF64"])
def test_cut_files_of_plain_samples_say_so(kind):
  out = io.BytesIO()
  soundfile.write(out, tone(2.0), 16000, format=kind)
  data = out.getvalue()
  assert len(_decode(data)) == 32000
  for share in (0.6, 0.97):
    _refused(data[: int(len(data) * share)], r"cut short.* \d+ .* \d+ ")


@pytest.mark.parametrize(
  ("kind", "codec"),
  [("wv", "wavpack"), ("tta", "tta"), ("asf", "libmp3lame"), ("caf", "alac")],
)
def test_other_cut_files_say_so(kind, codec):
  rng = np.random.default_rng(0)
  wave = rng.normal(0, 0.1, 64000).astype(np.float32)
  data = file_of(kind, sound=wave, sound_codec=codec)
  _decode(data)
  _refused(data[: len(data) * 6 // 10], r"cut short.* \d+ .* \d+ ")


@pytest.mark.parametrize("samples", [32000, 48000, 4096, 4097])
@pytest.mark.parametrize("subtype", ["ALAC_16", "ALAC_24"])
def test_alac_in_a_caf_file_is_read_to_its_end(samples, subtype):
  wave, out = tone(samples / 16000), io.BytesIO()
  soundfile.write(out, wave, 16000, format="CAF", subtype=subtype)
  np.testing.assert_allclose(_decode(out.getvalue()), wave, atol=1e-4)


def test_samples_beyond_what_a_wav_promises_are_told():
  whole = _wav(tone(2.0))
  short = bytearray(whole)
  at = short.index(b"data") + 4
  short[at : at + 4] = struct.pack("<I", 32000)
  half = len(whole) - 32000
  chunks = whole[:at] + struct.pack("<I", 32000) + whole[at + 4 : half]
  chunks += b"data" + struct.pack("<I", 32000) + whole[half:]
  for data in (bytes(short), chunks, whole + whole):
    _refused(data, "bytes follow the samples")
  note = b"LIST" + struct.pack("<I", 4) + b"INFO"
  for more in (note, b"TAG" + bytes(125), bytes(10000), note + b"\1"):
    assert len(_decode(whole + more)) == 32000


@pytest.mark.parametrize("kind", ["ogg", "flac", "wav"])
def test_a_tag_in_front_hides_nothing(kind):
  data = {"ogg": 2 * _ogg(1.0), "wav": _wav(tone(2.0))}.get(kind)
  data = data or _flac_promising(tone(2.0), 32000)
  tag = b"ID3\4\0\0\0\0\1\2" + bytes(130)
  assert len(_decode(tag + data)) == 32000
  if kind != "ogg":
    _refused(tag + data[:-9000], "cut short")


def test_links_with_something_between_them():
  x = _decode(_ogg(1.0) + b"junk" * 10 + _ogg(1.0, 880))
  assert len(x) == 32000
  _is_tone(x[16000:], 1.0, 880)


@pytest.mark.parametrize(
  "size", [0, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 36]
)
def test_streamed_wav_has_no_length(size):
  data = bytearray(_wav(tone(1.0)))
  data[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
  at = data.index(b"data")
  data[at + 4 : at + 8] = struct.pack("<I", size)
  assert len(_decode(bytes(data))) == 16000


def _header(data, offset, code, value):
  data = bytearray(data)
  data[offset : offset + struct.calcsize(code)] = struct.pack(code, value)
  return bytes(data)


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1, 2**32 - 1])
def test_rates_beyond_the_limits(rate):
  _refused(_header(_wav(tone(0.2)), 24, "<I", rate), "Hz|not a readable")
  if rate:
    _refused((tone(0.2), rate), "Hz")


@pytest.mark.parametrize("channels", [0, 65, 65535])
def test_channels_beyond_the_limits(channels):
  _refused(
    _header(_wav(tone(0.2)), 22, "<H", channels),
    "channels|not a readable|damaged",
  )


@pytest.mark.parametrize("value", [1e30, 17.0, -17.0, np.nan, np.inf, -np.inf])
def test_values_that_are_no_sound(value):
  wave = tone(0.5)
  wave[4000] = value
  match = "non-finite" if not np.isfinite(value) else "full scale"
  _refused(_wav(wave, subtype="FLOAT"), match)
  _refused(wave, match)
  _refused(np.stack([wave, tone(0.5)], 1), match)


def test_loud_and_tiny_values_are_sound():
  x = _decode(_wav(8 * tone(0.5), subtype="FLOAT"))
  assert np.abs(x).max() == pytest.approx(4.0, abs=0.05)
  tiny = np.full(8000, 1e-42, np.float32)
  for geometry in (GEOMETRY, MEAN):
    slices = (
      MODALITIES["audio"]
      .modes["plain"]
      .host(_decode(_wav(tiny, subtype="FLOAT"), geometry), geometry, None)
    )
    assert np.isfinite(slices).all()


@pytest.mark.parametrize(
  ("layout", "centre"),
  [
    ("3.0", 2),
    ("5.0", 2),
    ("5.1", 2),
    ("5.1(side)", 2),
    ("6.1", 2),
    ("7.1", 2),
  ],
)
@pytest.mark.parametrize("kind", ["flac", "wav", "mp4"])
def test_speech_in_the_centre_is_heard(layout, centre, kind):
  codec = {"flac": "flac", "wav": "pcm_s16le", "mp4": "aac"}[kind]
  count = 1 + int(layout[0]) if layout[2] == "1" else int(layout[0])
  wave = np.zeros((count, 32000), np.float32)
  wave[centre] = tone(2.0)
  try:
    data = file_of(kind, sound=wave, sound_codec=codec, layout=layout)
  except ValueError:
    pytest.skip(f"{codec} writes no {layout}")
  for geometry in (GEOMETRY, MEAN):
    assert np.abs(_decode(data, geometry)).max() > 0.1
  assert np.abs(_decode(wave, MEAN)).max() > 0.1


def test_weights_of_the_mix():
  """Six channels: L + 0.71 C + 0.71 Ls, without the low frequencies."""
  levels = np.array([0.1, 0.2, 0.3, 0.9, 0.4, 0.5], np.float32)
  array = np.tile(levels, (400, 1))
  half = np.sqrt(0.5)
  left = (0.1 + half * 0.3 + half * 0.4) / (1 + 2 * half)
  right = (0.2 + half * 0.3 + half * 0.5) / (1 + 2 * half)
  assert _decode(array)[9] == pytest.approx(left, abs=1e-6)
  assert _decode(array, MEAN)[9] == pytest.approx((left + right) / 2, abs=1e-6)
  assert _decode(np.ones((400, 11), np.float32))[0] == pytest.approx(1)
  alone = np.zeros((400, 11), np.float32)
  alone[:, 7] = 1.0
  assert _decode(alone)[0] == pytest.approx(1 / 11)


def test_quad_and_side_channels_are_heard():
  for channel in range(4):
    wave = np.zeros((4, 8000), np.float32)
    wave[channel] = 0.5
    assert np.abs(_decode(wave, MEAN)).max() > 0.05


def test_arrays_in_either_order():
  both = np.stack([tone(0.5), 0 * tone(0.5)])
  for array in (both, both.T, both.T.astype(np.float64), both[0]):
    np.testing.assert_allclose(_decode(array), tone(0.5), atol=1e-7)
  np.testing.assert_allclose(_decode(both[:1]), tone(0.5))
  for kind in (np.int8, np.int16, np.int32):
    full = np.full(100, np.iinfo(kind).min, kind)
    for stored in (full, full.astype(full.dtype.newbyteorder())):
      np.testing.assert_array_equal(_decode(stored), -1)


@pytest.mark.parametrize(
  ("array", "match"),
  [
    (np.zeros((2, 2), np.float32), "shape"),
    (np.zeros((65, 100), np.float32), "channels"),
    (np.zeros((0, 2), np.float32), "length 0"),
    (np.zeros(0, np.float32), "length 0"),
    ((np.zeros(100, np.float32),), "got 1 values"),
    (np.zeros(100, np.uint8), "uint8"),
    (np.zeros(100, bool), "bool"),
    (np.zeros(100, np.int64), "int64"),
    (np.zeros(100, np.uint16), "uint16"),
    (np.zeros(100, complex), "complex"),
    (np.zeros(100, object), "object"),
    (np.zeros((2, 3, 4), np.float32), "expected sound"),
    (np.float32(1), "expected sound"),
    ((np.zeros(100, np.float32), np.nan), "Hz"),
    ((np.zeros(100, np.float32), 44100.5), "Hz"),
    ((np.zeros(100, np.float32), "16000"), "Hz"),
  ],
)
def test_arrays_that_are_no_sound(array, match):
  _refused(array, match)


def test_a_damaged_packet_costs_its_sound_alone():
  data = bytearray(
    file_of("adts", sound=tone(4.0), sound_codec="aac", sound_rate=16000)
  )
  middle = len(data) // 2
  data[middle : middle + 20] = bytes(20)
  assert len(_decode(bytes(data))) / 16000 == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize(
  ("source", "target"),
  [(44100, 16000), (8000, 16000), (48000, 16000), (44099, 16000)],
)
def test_resampling_by_blocks(source, target, monkeypatch):
  monkeypatch.setattr(sound, "_INPUTS", 1 << 14)
  rng = np.random.default_rng(0)
  x = rng.normal(0, 0.1, 200_017).astype(np.float32)
  blocks = np.array_split(x, [1, 5000, 5000, 90_000, 199_999])
  np.testing.assert_array_equal(
    sound.resample_blocks(blocks, source, target),
    sound.resample(x, source, target),
  )


@pytest.mark.parametrize("source", [44100, 11025, 768_000])
def test_long_and_short_sounds_are_resampled_alike(source):
  rng = np.random.default_rng(0)
  x = rng.normal(0, 0.1, 3 * source).astype(np.float32)
  long, short = (sound.resample(x[:n], source, 16000) for n in (None, 1000))
  same = len(short) - 100 if source < 48000 else len(short) - 7
  np.testing.assert_array_equal(long[:same], short[:same])
  assert len(long) == 48000


def test_a_high_rate_is_resampled_in_time():
  x = np.zeros(768_000 * 20, np.float32)
  begin = time.perf_counter()
  sound.resample(x, 768_000, 16000)
  assert time.perf_counter() - begin < 2  # 4 s, were inputs gathered


def test_only_the_wanted_slices_are_filtered():
  rng = np.random.default_rng(0)
  config = GEOMETRY.audio
  wave = rng.normal(0, 0.1, 16000 * 20).astype(np.float32)
  whole = sound.fbank(wave, 32, config) - np.float32(config.mean)
  whole = np.pad(whole, ((0, -len(whole) % 32), (0, 0))).reshape(-1, 32, 32)
  got = log_mel_slices(wave, Geometry(len(whole), 32))
  np.testing.assert_allclose(got, whole, atol=1e-5)


def test_an_hour_is_cut_in_bounded_memory():
  import tracemalloc

  out = io.BytesIO()
  with soundfile.SoundFile(out, "w", 48000, 2, format="FLAC") as file:
    second = np.stack([tone(1.0, 48000)] * 2, 1)
    for _ in range(660):
      file.write(second)
  data = out.getvalue()
  tracemalloc.start()
  x = _decode(data)
  slices = log_mel_slices(x, Geometry(4, 224))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(x) == 600 * 16000
  assert slices.shape == (4, 224, 224)
  assert peak < 200e6
