"""Video of every kind of file: the right frames, the right way up."""

from __future__ import annotations

import dataclasses
import io
import struct

import numpy as np
import pytest
from PIL import Image

from mico_jax.modalities import MODALITIES, DecodeError, Geometry, video_file
from mico_jax.modalities.spatial import sample_frames
from mico_jax.modalities.video_file import VideoClip
from mico_jax.testing.media import file_of, greys, tone

GEOMETRY = Geometry(2, 32)
VALUES = [10 * i for i in range(24)]
EVERY_KIND = [
  ("mp4", "libx264", {}, {"bf": "2"}),
  ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}, {"bf": "2"}),
  ("mp4", "mpeg4", {}, {}),
  ("mov", "libx264", {}, {}),
  ("matroska", "libx264", {}, {"bf": "2"}),
  ("matroska", "libx264", {"live": "1"}, {}),
  ("webm", "libvpx-vp9", {}, {}),
  ("webm", "libvpx", {"live": "1"}, {}),
  ("avi", "mpeg4", {}, {}),
  ("avi", "libx264", {}, {"bf": "2"}),
  ("mpegts", "libx264", {}, {"bf": "2"}),
  ("mpeg", "mpeg2video", {}, {}),
  ("h264", "libx264", {}, {"bf": "2"}),
  ("flv", "flv", {}, {}),
]


def _means(frames):
  return [int(f.mean()) for f in frames]


def _all(data, geometry=GEOMETRY):
  clip = VideoClip(data, geometry)
  return clip.take(range(len(clip)))


def _refused(data, match, geometry=GEOMETRY):
  with pytest.raises(DecodeError, match=match) as error:
    _all(data, geometry)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "codec", "options", "more"), EVERY_KIND)
def test_constant_rate_gives_the_frames_by_index(kind, codec, options, more):
  data = file_of(
    kind,
    greys(VALUES),
    codec=codec,
    rate=25,
    options=options,
    codec_options=more,
  )
  clip = VideoClip(data, GEOMETRY)
  assert len(clip) == 24
  np.testing.assert_allclose(_means(clip.take(range(24))), VALUES, atol=6)
  for wanted in ([5], [0, 23], sample_frames(24, 4).tolist()):
    got = clip.take(wanted)
    np.testing.assert_array_equal(got, clip.take(range(24))[wanted])


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_variable_rate_goes_by_time(kind):
  """30 frames in the first second, 10 in the next five: 40 t is the grey."""
  times = [*range(0, 990, 33), *range(1000, 6000, 500)]
  frames = greys(t * 40 / 1000 for t in times)
  data = file_of(
    kind, frames, codec="libx264", times=times, codec_options={"bf": "2"}
  )
  x = (
    MODALITIES["video"]
    .modes["plain"]
    .host(VideoClip(data, GEOMETRY), GEOMETRY, None)
  )
  np.testing.assert_allclose(_means(x), [60, 180], atol=3)
  clip = VideoClip(data, GEOMETRY)
  for i, frame in enumerate(clip.take(range(len(clip)))):
    moment, shown = i * 6 / len(clip), int(frame.mean()) / 40
    best = min(abs(t / 1000 - moment) for t in times)
    assert abs(shown - moment) <= best + 0.06


@pytest.mark.parametrize(
  ("codec", "more"), [("mpeg4", {}), ("libx264", {"bf": "0"})]
)
def test_dropped_frames_of_an_avi_keep_their_time(codec, more):
  times = [*range(0, 1000, 50), *range(1000, 6000, 500)]
  frames = greys(t * 40 // 1000 for t in times)
  data = file_of("avi", frames, codec=codec, times=times, codec_options=more)
  clip = VideoClip(data, GEOMETRY)
  assert len(clip) == len(times)
  np.testing.assert_allclose(
    _means(clip.take([7, 22])), [7 * 8, 22 * 8], atol=12
  )


def test_animations_are_videos():
  def decode(kind, count):
    first, *rest = map(Image.fromarray, greys([0, 80, 160, 240][:count]))
    out = io.BytesIO()
    first.save(
      out, kind, save_all=True, append_images=rest, duration=500, lossless=True
    )
    return MODALITIES["video"].decode(out.getvalue(), GEOMETRY)

  clip = decode("png", 4)
  assert _means(clip.take(range(len(clip)))) == [0, 80, 160, 240]
  for kind in ("png", "webp"):
    assert len(decode(kind, 1)) == 1
  with pytest.raises(DecodeError, match="animated WebP"):
    decode("webp", 4)


def test_long_and_short_videos_follow_one_rule(monkeypatch):
  times = [*range(0, 3000, 30), *range(3000, 9000, 600)]
  frames = greys([t // 50 for t in times])
  for kind, options in (
    ("mp4", {"bf": "2", "g": "12"}),
    ("matroska", {"g": "12"}),
    ("mpegts", {"bf": "2", "g": "12"}),
  ):
    data = file_of(
      kind, frames, codec="libx264", times=times, codec_options=options
    )
    monkeypatch.setattr(video_file, "_SEEK_BEYOND", 1000)
    plain = VideoClip(data, GEOMETRY).take(range(len(times)))
    monkeypatch.setattr(video_file, "_SEEK_BEYOND", 5)
    for wanted in ([0, 50, 109], range(0, 110, 7)):
      np.testing.assert_array_equal(
        VideoClip(data, GEOMETRY).take(wanted), plain[list(wanted)]
      )


def test_frames_beyond_the_limit_are_left_out():
  audio = dataclasses.replace(GEOMETRY.audio, max_seconds=1.2)
  geometry = dataclasses.replace(GEOMETRY, audio=audio)
  data = file_of("mp4", greys(VALUES), codec="libx264", rate=10)
  clip = VideoClip(data, geometry)
  assert len(clip) == 12
  np.testing.assert_allclose(_means(clip.take(range(12))), VALUES[:12], atol=3)


def test_joined_files_are_read_to_their_end():
  one = file_of("mpegts", greys(VALUES), codec="libx264")
  two = file_of("mpegts", greys(VALUES[::-1]), codec="libx264")
  clip = VideoClip(one + two, GEOMETRY)
  assert len(clip) == 48
  np.testing.assert_allclose(
    _means(clip.take(range(48))), VALUES + VALUES[::-1], atol=3
  )


def test_late_and_negative_starts():
  for start in (5000, -400):
    times = [start + 100 * i for i in range(24)]
    for kind in ("matroska", "mp4", "mpegts"):
      data = file_of(kind, greys(VALUES), codec="libx264", times=times)
      clip = VideoClip(data, GEOMETRY)
      # The edit list of an MP4 begins at 0 and hides what is before.
      hidden = 4 if kind == "mp4" and start < 0 else 0
      np.testing.assert_allclose(
        _means(clip.take(range(len(clip)))), VALUES[hidden:], atol=3
      )


def _edit_list(data, start, length):
  """The MP4 with an edit list that shows [start, start + length) ms."""
  at = data.index(b"elst")
  body = struct.pack(">II", 0, 1) + struct.pack(">IiI", length, start, 1 << 16)
  return data[: at + 4] + body + data[at + 4 + len(body) :]


def test_an_edit_list_shows_what_it_shows():
  data = file_of(
    "mp4", greys(VALUES), codec="libx264", rate=10, codec_options={"g": "1"}
  )
  scale = 10240  # of the track, as the muxer chooses for 10 frames per second
  cut = _edit_list(data, 5 * scale // 10, 1500)
  clip = VideoClip(cut, GEOMETRY)
  np.testing.assert_allclose(
    _means(clip.take(range(len(clip)))), VALUES[5:20], atol=3
  )


MATRICES = {
  "none": (1, 0, 0, 1),
  "right": (0, 1, -1, 0),
  "half": (-1, 0, 0, -1),
  "left": (0, -1, 1, 0),
  "mirror": (-1, 0, 0, 1),
  "upside": (1, 0, 0, -1),
  "transpose": (0, 1, 1, 0),
  "transverse": (0, -1, -1, 0),
}


def _with_matrix(data, matrix):
  """Writes (a, b, c, d) into the header of an MP4's track."""
  data = bytearray(data)
  at = data.index(b"tkhd") + 44
  a, b, c, d = (round(65536 * v) for v in matrix)
  data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  return bytes(data)


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_applied(name):
  picture = np.zeros((48, 64, 3), np.uint8)
  picture[:24, :32], picture[:24, 32:] = 40, 90
  picture[24:, :32], picture[24:, 32:] = 140, 200
  expected = {
    "none": picture,
    "right": np.rot90(picture, -1),
    "half": np.rot90(picture, 2),
    "left": np.rot90(picture),
    "mirror": picture[:, ::-1],
    "upside": picture[::-1],
    "transpose": picture.swapaxes(0, 1),
    "transverse": np.rot90(picture.swapaxes(0, 1), 2),
  }[name]
  data = file_of(
    "mp4", [picture] * 4, codec="libx264", codec_options={"qp": "0"}
  )
  got = VideoClip(_with_matrix(data, MATRICES[name]), GEOMETRY).take([0, 3])
  assert got.shape == (2, *expected.shape)
  assert np.abs(got.astype(int) - expected).max() <= 6


def test_other_matrices_are_refused_and_an_empty_one_is_none():
  data = file_of("mp4", greys([0, 90]), codec="libx264")
  _refused(_with_matrix(data, (0.7, 0.7, -0.7, 0.7)), "display matrix")
  assert VideoClip(_with_matrix(data, (0, 0, 0, 0)), GEOMETRY).take([0]).any


def test_transparent_video_is_on_white():
  frame = np.zeros((48, 64, 4), np.uint8)
  frame[:, 32:] = (200, 0, 0, 255)
  for kind, codec, pixels in (
    ("mov", "qtrle", "argb"),
    ("mov", "png", "rgba"),
    ("webm", "libvpx-vp9", "yuva420p"),
    ("webm", "libvpx", "yuva420p"),
  ):
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    data = file_of(
      kind, [frame] * 3, codec=codec, pixels=pixels, codec_options=options
    )
    got = VideoClip(data, GEOMETRY).take([1])[0].astype(int)
    assert np.abs(got[0, 0] - 255).max() <= 1
    assert np.abs(got[0, 63] - (200, 0, 0)).max() <= 2


@pytest.mark.parametrize(
  ("codec", "pixels", "size"),
  [
    ("libx264", "yuv420p10le", (48, 64)),
    ("libx264", "yuv444p", (47, 65)),
    ("libvpx-vp9", "yuv420p", (17, 31)),
    ("ffv1", "gray16le", (48, 64)),
    ("ffv1", "bgr0", (48, 64)),
  ],
)
def test_pixel_formats(codec, pixels, size):
  data = file_of("matroska", greys(VALUES, size), codec=codec, pixels=pixels)
  got = VideoClip(data, GEOMETRY).take(range(24))
  assert got.shape == (24, *size, 3)
  np.testing.assert_allclose(_means(got), VALUES, atol=8)


def test_interlaced_video_is_read_as_woven():
  data = file_of(
    "mpegts",
    greys(VALUES),
    codec="mpeg2video",
    rate=25,
    codec_options={"flags": "+ildct+ilme", "g": "6"},
  )
  clip = VideoClip(data, GEOMETRY)
  np.testing.assert_allclose(
    _means(clip.take(range(len(clip)))), VALUES, atol=6
  )


def _with_cover(kind, codec):
  """Sound with a picture on its cover."""
  import av

  out = io.BytesIO()
  with av.open(out, "w", format=kind) as container:
    audio = container.add_stream(codec, rate=44100, layout="mono")
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    samples = tone(2.0, 44100)
    picture = av.VideoFrame.from_ndarray(greys([90])[0])
    container.mux(cover.encode(picture))
    container.mux(cover.encode())
    for at in range(0, len(samples), 1024):
      frame = av.AudioFrame.from_ndarray(
        samples[None, at : at + 1024], format="flt", layout="mono"
      )
      frame.sample_rate, frame.pts = 44100, at
      container.mux(audio.encode(frame))
    container.mux(audio.encode())
  return out.getvalue()


@pytest.mark.parametrize(
  ("kind", "codec"), [("mp3", "libmp3lame"), ("mp4", "aac")]
)
def test_cover_art_is_no_video(kind, codec):
  data = _with_cover(kind, codec)
  _refused(data, "cover art")
  sound = MODALITIES["audio"].decode(data, GEOMETRY)
  assert len(sound) / 16000 == pytest.approx(2.0, abs=0.06)


def test_frames_of_another_size_or_count():
  _refused(file_of("mp4", sound=tone(1.0)), "no video stream")
  _refused(b"", "empty")
  data = file_of("mp4", greys(VALUES), codec="libx264")
  small = dataclasses.replace(GEOMETRY, max_pixels=1000)
  _refused(data, "64 x 48 pixels", small)
  one = file_of("h264", greys([50] * 5), codec="libx264")
  two = file_of("h264", greys([90] * 5, (64, 96)), codec="libx264")
  _refused(one + two, "differ in size")


def test_one_frame_is_a_video():
  clip = VideoClip(file_of("mp4", greys([90]), codec="libx264"), GEOMETRY)
  np.testing.assert_allclose(_means(clip.take([0, 0])), 90, atol=2)


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mov"])
def test_cut_files_say_so(kind):
  data = file_of(
    kind,
    greys(VALUES),
    codec="libx264",
    options={"movflags": "frag_keyframe+empty_moov"} if kind == "mp4" else {},
  )
  for share in (0.5, 0.9):
    _refused(data[: int(len(data) * share)], r"cut short.* \d+ .* \d+ ")


def test_a_damaged_moment_is_refused_and_the_rest_is_kept():
  noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)
  data = bytearray(file_of("mov", list(noise), codec="png", pixels="rgb24"))
  clip = VideoClip(bytes(data), GEOMETRY)
  size = len(data) // 60
  for first, last in ((30, 31), (20, 50)):
    broken = bytearray(data)
    for i in range(first, last):
      middle = i * size + size // 2
      broken[middle : middle + 600] = bytes(600)
    damaged = VideoClip(bytes(broken), GEOMETRY)
    good = [0, 10, 55]
    np.testing.assert_array_equal(damaged.take(good), clip.take(good))
    if last - first == 1:
      assert damaged.take([30]).shape == (1, 48, 64, 3)
    else:
      with pytest.raises(DecodeError, match=r"no frame within 1 s of 3\.50"):
        damaged.take([35])
