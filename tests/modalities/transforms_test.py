"""Transforms of training samples: by table, and each by its definition."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
from PIL import Image

from mico_jax.modalities import KNOWLEDGE, MODALITIES, Geometry
from mico_jax.modalities.augmentation import COLS, LOG_MEL, MIX, ROWS, View
from mico_jax.modalities.spatial import ArrayClip
from mico_jax.modalities.transforms import (
  TRANSFORMS,
  Augmentation,
  color,
  make_transforms,
)

GEOMETRY = Geometry(2, 32, unit="metre")
# Numbers with which a transform changes nearly every sample.
STRONG = {
  "random_resized_crop": {"scale": (0.2, 0.5), "interpolation": "bicubic"},
  "flip": {"horizontal": 0.9, "vertical": 0.9},
  "random_erasing": {"probability": 1.0},
  "mixup": {"probability": 1.0},
  "spec_augment": {"time_width": 20, "frequency_width": 10},
}


def drawn(augment, seed=0, other=None):
  """The augmentation of sample `seed`."""
  return Augmentation(
    make_transforms(augment, "augment"),
    lambda name: np.random.default_rng([seed, *name.encode()]),
    other,
  )


def augmented(key, mode, augment, seed=0, clip=None, geometry=GEOMETRY):
  """What is sent of an example."""
  unit = mode.unit or geometry.unit
  geometry = dataclasses.replace(geometry, unit=unit)
  sample = MODALITIES[key].example(geometry, 1) if clip is None else clip
  other = MODALITIES["audio"].example(geometry, 2) if key == "audio" else None
  rng = np.random.default_rng(seed)
  return mode.host(sample, geometry, rng, augment=drawn(augment, seed, other))


CASES = [
  (name, key, mode)
  for name, transform in TRANSFORMS.items()
  for key in KNOWLEDGE
  for mode in MODALITIES[key].modes.values()
  if transform.stage in mode.stages
]


@pytest.mark.parametrize(
  ("name", "key", "mode"), CASES, ids=lambda x: getattr(x, "name", x)
)
def test_every_transform_in_every_mode(name, key, mode):
  modality, augment = MODALITIES[key], {name: STRONG.get(name, {})}
  plain = augmented(key, mode, {})
  changed = 0
  for seed in range(3):
    one, two = (augmented(key, mode, augment, seed) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == plain.shape
    assert one.dtype == (mode.dtype or modality.spec.dtype)
    low, high = mode.value_range or modality.spec.value_range
    assert low <= one.min() <= one.max() <= high
    without = augmented(key, mode, {}, seed)
    changed += not np.array_equal(one, without)
  assert changed
  # Without transforms a mode is what it was.
  unit = mode.unit or GEOMETRY.unit
  geometry = dataclasses.replace(GEOMETRY, unit=unit)
  sample = modality.example(geometry, 1)
  rngs = (np.random.default_rng(0), np.random.default_rng(0))
  bare = mode.host(sample, geometry, rngs[0])
  none = mode.host(sample, geometry, rngs[1], augment=None)
  np.testing.assert_array_equal(bare, none)


def test_every_transform_is_used_by_some_mode():
  assert {name for name, _, _ in CASES} == set(TRANSFORMS)
  for name, kind in TRANSFORMS.items():
    assert name == kind.name
    assert kind.summary().endswith(".")


def test_the_order_is_the_table():
  names = list(TRANSFORMS)
  made = make_transforms({n: {} for n in reversed(names)}, "augment")
  assert [transform.name for transform in made] == names


def test_one_more_transform_changes_no_other_draw():
  crop = {"random_resized_crop": {"scale": (0.2, 0.5)}}
  frames = np.zeros((1, 50, 70, 3), np.uint8)
  for seed in range(5):
    one = drawn(crop, seed).view(frames)
    more = drawn({**crop, "flip": {}, "random_erasing": {}}, seed).view(frames)
    assert one.box == more.box


# -------------------------------------------------------------------- alignment
ALIGNED = {
  # No resize: a quarter of 64 x 64 pixels is 32 x 32.
  "random_resized_crop": {"scale": (0.25, 0.25), "ratio": (1.0, 1.0)},
  "flip": {"horizontal": 0.5, "vertical": 0.5},
  "random_erasing": {"probability": 0.5},
}


def coordinates():
  """Pictures of one scene, whose values say where they are."""
  y, x = np.mgrid[1:65, 1:65]
  colors = np.stack([x, y, x + y], -1).astype(np.uint8)
  return colors, x.astype(np.float32)


def test_aligned_modalities_are_seen_alike():
  colors, x = coordinates()
  modes = {k: MODALITIES[k].modes for k in ("image", "video", "depth")}
  seen = set()
  for seed in range(12):
    augment, rng = drawn(ALIGNED, seed), np.random.default_rng
    image = modes["image"]["plain"].host(
      ArrayClip(colors[None]), Geometry(1, 32), rng(seed), augment=augment
    )
    video = modes["video"]["plain_clip"].host(
      ArrayClip(np.stack([colors] * 5)), GEOMETRY, rng(seed), augment=augment
    )
    depth = modes["depth"]["metric"].host(
      ArrayClip(x[None]), GEOMETRY, rng(seed), augment=augment
    )
    half = modes["depth"]["metric"].host(  # a smaller map of the same scene
      ArrayClip(x[None, ::2, ::2]), GEOMETRY, rng(seed), augment=augment
    )
    shown = depth[0] > 0  # else hidden
    np.testing.assert_array_equal(image[0, ..., 0][shown], depth[0][shown])
    np.testing.assert_array_equal(video[0][shown], image[0][shown])
    assert np.all(image[0][~shown] == 128)
    assert np.abs(half[0] - depth[0])[shown].max() <= 2
    first, last = image[0, 0, 0], image[0, -1, -1]
    seen.add((bool(first[0] > last[0]), bool(first[1] > last[1]), shown.all()))
  assert len({flips[:2] for flips in seen}) == 4
  assert len({flips[2] for flips in seen}) == 2


@pytest.mark.parametrize("name", ["plain", "mico_demo"])
@pytest.mark.parametrize("axis", [ROWS, COLS])
def test_normals_are_mirrored_with_their_map(axis, name):
  frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
  options = {"horizontal": float(axis == COLS), "vertical": float(axis == ROWS)}
  mode = MODALITIES["normal"].modes[name]
  out = augmented("normal", mode, {"flip": options}, clip=ArrayClip(frames))
  most = 255 if out.dtype == np.uint8 else 1
  want = np.flip(frames, axis) * (most / 255)
  component = {COLS: 0, ROWS: 1}[axis]
  want[..., component] = most - want[..., component]
  np.testing.assert_allclose(out[0], want[0], atol=1e-6)


def test_colors_change_alike_in_all_frames():
  frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
  clip = ArrayClip(np.repeat(frames, 3, axis=0))
  names = {"color_jitter": {"hue": 0.3}, "rand_augment": {"num_ops": 3}}
  video, image = (MODALITIES[key].modes["plain"] for key in ("video", "image"))
  for seed in range(4):
    out = augmented("video", video, names, seed, clip)
    np.testing.assert_array_equal(out[0], out[1])
    one = augmented("image", image, names, seed, clip, Geometry(1, 32))
    np.testing.assert_array_equal(out[0], one[0])


# ------------------------------------------------------------------ definitions
def uniform_gap(values, low, high):
  """Largest distance of a distribution from the uniform one."""
  x = (np.sort(values) - low) / (high - low)
  return np.abs(x - (np.arange(len(x)) + 0.5) / len(x)).max()


def test_random_resized_crop_draws_as_defined():
  (crop,) = make_transforms(
    {"random_resized_crop": {"scale": (0.1, 0.3), "ratio": (0.5, 2.0)}}, ""
  )
  rng, rows, cols, boxes = np.random.default_rng(0), 400, 600, []
  for _ in range(2000):
    boxes.append(crop(View(rows, cols), rng).box)
  top, left, height, width = np.array(boxes).T
  assert (top >= 0).all()
  assert (top + height <= rows).all()
  assert (left >= 0).all()
  assert (left + width <= cols).all()
  # All boxes fit, so that none is drawn again. 1.95 / sqrt(2000) = 0.044: one
  # of a thousand uniform samples is farther away.
  area = height * width / (rows * cols)
  assert uniform_gap(area, 0.1, 0.3) < 0.044
  ratio = np.log(width / height)
  assert uniform_gap(ratio, -math.log(2), math.log(2)) < 0.044
  assert uniform_gap((top + 0.5) / (rows - height + 1), 0, 1) < 0.044
  assert uniform_gap((left + 0.5) / (cols - width + 1), 0, 1) < 0.044


@pytest.mark.parametrize(
  ("shape", "box"),
  [((100, 300), (0, 84, 100, 133)), ((300, 90), (90, 0, 120, 90))],
)
def test_where_no_crop_fits_the_middle_is_taken(shape, box):
  (crop,) = make_transforms({"random_resized_crop": {"scale": (1.0, 1.0)}}, "")
  got = crop(View(*shape), np.random.default_rng(0)).box
  assert np.abs(np.subtract(got, box)).max() <= 1


def test_random_erasing_draws_as_defined():
  (erase,) = make_transforms(
    {"random_erasing": {"probability": 0.3, "scale": (0.1, 0.2)}}, ""
  )
  rng = np.random.default_rng(0)
  views = [erase(View(40, 40), rng) for _ in range(2000)]
  boxes = np.array([view.blanks[0] for view in views if view.blanks])
  assert abs(len(boxes) / 2000 - 0.3) < 0.04
  top, left, height, width = boxes.T
  assert 0.1 <= (height * width).min() <= (height * width).max() <= 0.2
  assert (top + height).max() <= 1
  assert (left + width).max() <= 1
  hidden = views[0].hide(np.ones((2, 40, 40), np.float32), 0)
  assert hidden.all() == (not views[0].blanks)


@functools.cache
def photo():
  """A smooth picture with some noise, of nearly all values."""
  y, x = np.mgrid[0:32, 0:32] / 31
  smooth = 20 + 200 * np.stack([x, y, (1 - x) * y], -1)
  noise = np.random.default_rng(0).uniform(-15, 15, smooth.shape)
  return Image.fromarray((smooth + noise).astype(np.uint8))


@pytest.mark.parametrize("name", color.OPERATIONS)
def test_operations_of_rand_augment(name):
  operation = color.OPERATIONS[name]
  np.testing.assert_array_equal(operation(photo(), 0.0), photo())
  weak, strong = (
    np.abs(np.asarray(operation(photo(), m)).astype(int) - photo()).mean()
    for m in (0.1, 1.0)
  )
  assert weak < strong
  if name in color.SIGNED:
    assert np.any(
      np.asarray(operation(photo(), -0.5)) != operation(photo(), 0.5)
    )


def test_rand_augment_has_all_its_operations():
  assert len(color.OPERATIONS) + len(color.PLAIN) == 14
  np.testing.assert_array_equal(color.PLAIN["identity"](photo()), photo())
  frames = np.asarray(photo())[None]
  results = set()
  for seed in range(200):
    options = {"num_ops": 1, "geometric": seed < 100}
    results.add(drawn({"rand_augment": options}, seed).color(frames).tobytes())
  # Nine of them have two directions; posterize rounds 1.2 to one bit.
  assert len(results) == 14 + 9
  still = {"rand_augment": {"magnitude": 0.0, "num_ops": 1}}
  same = sum(
    np.array_equal(drawn(still, seed).color(frames), frames)
    for seed in range(60)
  )
  assert 40 <= same < 60  # all but autocontrast and equalize


def test_color_jitter_of_nothing_is_nothing():
  frames = np.asarray(photo())[None]
  zero = dict.fromkeys(("brightness", "contrast", "saturation"), 0.0)
  for seed in range(4):
    got = drawn({"color_jitter": zero}, seed).color(frames)
    np.testing.assert_array_equal(got, frames)
    grey = drawn({"color_jitter": {**zero, "grayscale": 1.0}}, seed)
    assert np.ptp(grey.color(frames), axis=-1).max() == 0
  # Brightness alone: a factor of 1 - 0.4 to 1 + 0.4.
  white = np.full((1, 4, 4, 3), 100, np.uint8)
  only = {**zero, "brightness": 0.4}
  values = [
    int(drawn({"color_jitter": only}, seed).color(white)[0, 0, 0, 0])
    for seed in range(200)
  ]
  assert 60 <= min(values) < 65
  assert 135 < max(values) <= 140


def test_masks_of_spec_augment_have_their_widths():
  options = {
    "time_masks": 1, "time_width": 12, "frequency_masks": 1,
    "frequency_width": 5,
  }  # fmt: skip
  ones, widths = np.ones((2, 32, 32), np.float32), []
  for seed in range(400):
    long = drawn({"spec_augment": options}, seed).log_mel(ones).reshape(64, 32)
    rows = np.flatnonzero(~long.any(axis=1))
    cols = np.flatnonzero(~long.any(axis=0))
    for hidden in (rows, cols):
      assert not len(hidden) or np.ptp(hidden) == len(hidden) - 1
    assert long.sum() == (64 - len(rows)) * (32 - len(cols))
    widths.append((len(rows), len(cols)))
  assert ones.all()
  assert {rows for rows, _ in widths} == set(range(13))
  assert {cols for _, cols in widths} == set(range(6))


def test_mixup_is_a_weighted_sum():
  own, other = np.ones(100, np.float32), np.full(40, 3.0, np.float32)
  shares = []
  for seed in range(300):
    mixed = drawn({"mixup": {}}, seed, other).sound(own)
    share = float(mixed[-1])  # nothing of the other is left there
    np.testing.assert_allclose(mixed[:40], 3 - 2 * share, rtol=1e-5)
    np.testing.assert_allclose(mixed[40:], share, rtol=1e-6)
    shares.append(share)
  assert own.all()
  assert abs(np.mean(shares) - 0.5) < 0.03
  assert np.var(shares) == pytest.approx(1 / 84, rel=0.3)  # Beta(10, 10)
  assert drawn({"mixup": {}}, 0, None).sound(own) is own


def test_gain_is_in_decibels():
  levels = [
    float(drawn({"gain": {"decibels": 6.0}}, s).sound(np.ones(1, "f4"))[0])
    for s in range(200)
  ]
  assert 0.5 < min(levels) < 0.55
  assert 1.85 < max(levels) < 2.0


def tone(hertz, seconds=1.0, rate=16_000):
  """A sine, and its loudest frequency by the spectrum is `hertz`."""
  t = np.arange(int(seconds * rate)) / rate
  return np.sin(2 * np.pi * hertz * t).astype(np.float32)


def loudest(waveform, rate=16_000):
  spectrum = np.abs(np.fft.rfft(waveform))
  return spectrum.argmax() * rate / len(waveform)


def test_speed_changes_length_and_pitch_alike():
  sound = tone(1000)
  for seed in range(50):
    faster = drawn({"speed": {"change": 0.2}}, seed).sound(sound)
    speed = len(sound) / len(faster)
    assert 0.79 < speed < 1.21
    assert loudest(faster) == pytest.approx(1000 * speed, abs=2)
  speeds = [
    16_000 / len(drawn({"speed": {"change": 0.2}}, s).sound(sound))
    for s in range(100)
  ]
  assert min(speeds) < 0.83
  assert max(speeds) > 1.17


def test_shift_keeps_the_end():
  sound = np.arange(1, 101, dtype=np.float32)
  shifts = []
  for seed in range(100):
    moved = drawn({"shift": {"share": 0.2}}, seed).sound(sound)
    later = len(moved) - 100
    shifts.append(later)
    assert not moved[: max(later, 0)].any()
    np.testing.assert_array_equal(
      moved[max(later, 0) :], sound[-later:] if later < 0 else sound
    )
  assert (min(shifts), max(shifts)) == (-20, 20)


def test_equalizer_changes_levels_and_no_frequency():
  for hertz in (100, 1000, 6000):
    sound, levels = tone(hertz), []
    for seed in range(200):
      other = drawn({"equalize": {"decibels": 6.0}}, seed).sound(sound)
      assert len(other) == len(sound)
      assert other.dtype == np.float32
      assert loudest(other) == hertz
      levels.append(20 * np.log10(np.abs(other).max() / np.abs(sound).max()))
    assert -6.05 < min(levels) < -4.0
    assert 4.0 < max(levels) < 6.05
  # Neighbouring frequencies differ little, far ones are drawn by themselves.
  mixture = tone(100) + tone(110) + tone(6000)
  gains = np.array(
    [
      np.abs(np.fft.rfft(drawn({"equalize": {}}, s).sound(mixture)))[
        [100, 110, 6000]
      ]
      for s in range(200)
    ]
  )
  near = np.log(gains[:, 0] / gains[:, 1])
  far = np.log(gains[:, 0] / gains[:, 2])
  assert near.std() < 0.15 * far.std()


def test_sounds_without_samples_stay_so():
  for name in ("speed", "shift", "equalize"):
    assert len(drawn({name: {}}).sound(np.zeros(1, "f4"))) == 1


def test_sounds_take_what_the_stages_say():
  stages = MODALITIES["audio"].modes["plain"].stages
  assert {MIX, LOG_MEL} < set(stages)
  assert not MODALITIES["audio"].modes["spec_augment"].stages
