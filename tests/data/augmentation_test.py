"""Augmentation as users set it: by the config of a task, in batches."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from mico_jax.config import ConfigError, InputConfig, override
from mico_jax.data.augmentation import TaskAugmentation
from mico_jax.data.batch_maker import BatchMaker
from mico_jax.data.cache import DecodedCache
from mico_jax.data.input_checks import check_inputs
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import open_source
from mico_jax.data.stalled import Stalled
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError, Geometry
from mico_jax.modalities.sampling import SAMPLINGS
from mico_jax.modalities.video_file import VideoClip
from mico_jax.run.checks import check_values
from mico_jax.testing.media import file_of, greys
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  wav,
  write_manifest,
  write_tar,
)

CROP = {"random_resized_crop": {"scale": (0.2, 0.5)}, "flip": {}}


def with_augment(config, augment):
  """The config with transforms of its task."""
  task = dataclasses.replace(config.tasks["one"], augment=augment)
  return dataclasses.replace(config, tasks={"one": task})


def batches(config, steps=4, start=0):
  tokenizer = make_tokenizer(config.data.tokenizer)
  return [
    batch
    for _, _, batch in Pipeline(
      config, tokenizer, start_step=start, end_step=steps
    )
  ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A config of pictures with a slope, and their sounds."""
  folder = tmp_path_factory.mktemp("augment")
  path = write_manifest(folder)
  y, x = np.mgrid[0:48, 0:64]
  for i in range(8):
    frame = np.stack([x + 20 * i, y, x + y], -1).astype(np.uint8)
    np.save(folder / f"{i}.npy", frame)
  path.write_text(path.read_text().replace(".png", ".npy"))
  return config_of(a=manifest_source(path), groups=("ti",), batch=8)


def test_batches_are_augmented_and_repeatable(pictures):
  plain, config = batches(pictures), with_augment(pictures, CROP)
  one, again = batches(config), batches(config, start=2)
  for a, b in zip(one[2:], again, strict=True):  # resumed
    np.testing.assert_array_equal(a["inputs"]["image"], b["inputs"]["image"])
  for a, b in zip(plain, one, strict=True):
    assert (a["inputs"]["image"] != b["inputs"]["image"]).any()
    for group in a["text"]:  # texts and order stay as they are
      np.testing.assert_array_equal(a["text"][group], b["text"][group])
  first, second = (step["inputs"]["image"] for step in one[:2])  # two epochs
  shown = {x.tobytes() for x in (*first, *second)}
  assert len(shown) == 16


def test_evaluation_sees_nothing_of_it(pictures):
  strong = {**CROP, "rand_augment": {}, "random_erasing": {"probability": 1.0}}
  config = with_augment(pictures, strong)
  for i in range(3):
    one, two = (
      load_inputs(c, open_source(c, "a").record(i), "a", ("image",), None)
      for c in (pictures, config)
    )
    np.testing.assert_array_equal(one["image"], two["image"])


def test_worker_processes_get_the_same_transforms(pictures):
  config = with_augment(pictures, CROP)
  tokenizer = make_tokenizer(config.data.tokenizer)
  rows = {"one": tuple(range(8))}
  maker = BatchMaker(config, tokenizer, {"a": 8}, rows, Stalled("", "0"), 4)
  travelled = pickle.loads(pickle.dumps(maker))
  one, two = (m(0).batch["inputs"]["image"] for m in (maker, travelled))
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one, batches(config, 1)[0]["inputs"]["image"])


def overridden(config, *texts):
  config = override(config, texts)
  check_values(config)
  check_inputs(config)


AUGMENT = "tasks.one.augment="
INPUT = "data.inputs.image"
WRONG = {
  "blur": (AUGMENT + "{'blur': {}}", r"names 'blur'; known: random_resized"),
  "option": (AUGMENT + "{'flip': {'chance': 1}}", r"flip: unknown.*horizontal"),
  "range": (
    AUGMENT + "{'random_resized_crop': {'scale': (0.5, 1.5)}}",
    r"augment\.random_resized_crop: scale\[1\]=1.5: expected a number of at",
  ),
  "count": (
    AUGMENT + "{'random_resized_crop': {'ratio': (1.0,)}}",
    r"ratio=.*expected 2 entries",
  ),
  "order": (
    AUGMENT + "{'random_erasing': {'scale': (0.5, 0.1)}}",
    r"scale=\(0.5, 0.1\): expected \(smallest, largest\)",
  ),
  "type": (AUGMENT + "{'flip': {'horizontal': True}}", r"horizontal=True"),
  "nothing": (AUGMENT + "{'spec_augment': {}}", r"changes audio, but.*image"),
  "mode": (
    AUGMENT + "{'flip': {}}",
    f"{INPUT}.mode=crop_flip",
    r"image\.mode='crop_flip' does not take it .* plain, mico_demo",
  ),
  "values": (
    AUGMENT + "{'color_jitter': {}}",
    f"{INPUT}.mode=mico_demo",
    r"mode='mico_demo' does not take it",
  ),
  "sampling": (f"{INPUT}.sampling=every", r"sampling='every'.*chunk, fps"),
  "fps": (f"{INPUT}.fps=0", r"image\.fps=0: expected a number"),
  "unread": (f"{INPUT}.fps=2.0", r"fps=2.0 has no effect with .*'chunk'"),
  "stride": (
    f"{INPUT}.sampling=fps",
    f"{INPUT}.stride=2",
    r"stride=2 has no effect with sampling='fps'; set sampling='dense'",
  ),
  "words": (
    "data.inputs.subtitle={'dropout': 0.5}",
    r"inputs\.subtitle: words have no frames and no dropout",
  ),
  "window": (
    "data.audio.window_ms=0.1",
    "data.audio.sample_rate=8000",
    r"window_ms=0.1 is 1 samples at 8000 Hz, expected at least 2",
  ),
  "hop": (
    "data.audio.sample_rate=1000",
    "data.audio.hop_ms=0.1",
    r"hop_ms=0.1 is 0 samples at 1000 Hz",
  ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_at_once(pictures, name):
  *texts, message = WRONG[name]
  image = {"image": InputConfig(), "audio": InputConfig()}
  data = dataclasses.replace(pictures.data, inputs=image)
  config = dataclasses.replace(pictures, data=data)
  with pytest.raises(ConfigError, match=message):
    overridden(config, *texts)


@pytest.mark.parametrize(
  ("groups", "augment", "message"),
  [
    (("tid",), {"rand_augment": {}}, r"against the maps.*geometric=False"),
    (("tia",), {"mixup": {}}, r"tasks of 'a' alone.*groups here: tia"),
    (("ta",), {"spec_augment": {"frequency_width": 40}}, r"40 is more.*32"),
  ],
)
def test_transforms_fit_the_groups(pictures, groups, augment, message):
  task = dataclasses.replace(
    pictures.tasks["one"],
    objectives={"contrastive": groups},
    augment=augment,
  )
  config = dataclasses.replace(pictures, tasks={"one": task})
  with pytest.raises(ConfigError, match=message):
    check_inputs(config)
  if groups == ("tid",):
    overridden(config, AUGMENT + "{'rand_augment': {'geometric': False}}")


def test_sounds_have_no_frames_per_second(pictures):
  inputs = {"audio": InputConfig(sampling="fps")}
  data = dataclasses.replace(pictures.data, inputs=inputs)
  with pytest.raises(ConfigError, match=r"inputs\.audio\.sampling='fps'"):
    check_inputs(dataclasses.replace(pictures, data=data))


# ----------------------------------------------------------------------- mixup
@pytest.fixture
def sounds(tmp_path):
  """A config of eight sounds, mixed always; a manifest with negatives."""
  path = write_manifest(
    tmp_path, negatives=[{"omni": [f"a cone {i}"]} for i in range(8)]
  )
  return tmp_path, with_augment(
    config_of(
      a=manifest_source(path),
      groups=("ta",),
      batch=8,
      data={"num_negatives": 1},
    ),
    {"mixup": {"probability": 1.0}},
  )


def _texts(config, rows):
  tokenizer = make_tokenizer(config.data.tokenizer)
  return [tokenizer.decode(row.tolist()) for row in rows]


def test_mixed_sounds_have_both_captions(sounds):
  _, config = sounds
  plain = batches(with_augment(config, {}), 1)[0]
  (mixed,) = batches(config, 1)
  assert (plain["inputs"]["audio"] != mixed["inputs"]["audio"]).any()
  texts = _texts(config, mixed["text"]["ta"])
  for own, both in zip(_texts(config, plain["text"]["ta"]), texts, strict=True):
    assert both.startswith(f"{own} and a small cube")
    assert both != f"{own} and {own}"
  false = mixed["negative_text"]["ta"][:, 0]
  for text, negative in zip(texts, _texts(config, false), strict=True):
    # Of the sample, with the true caption of the other one.
    assert negative.startswith("a cone")
    assert negative.split(" and ")[1] == text.split(" and ")[1]


def test_a_partner_that_cannot_be_read_is_left_out(sounds):
  folder, config = sounds
  write_tar(
    folder / "sound.tar",
    [(f"s{i}.wav", wav(2000 + i) if i < 2 else b"no") for i in range(8)],
  )
  source = dataclasses.replace(config.data.sources["a"], size=3)
  config = override(config, ["data.max_bad_fraction=1.0"])
  data = dataclasses.replace(config.data, sources={"a": source})
  (batch,) = batches(dataclasses.replace(config, data=data), 1)
  texts = _texts(config, batch["text"]["ta"])
  for text in texts:
    assert "cube 2" not in text  # broken: neither a sample nor a partner
  assert any(" and " in text for text in texts)


def test_partners_are_others_and_evenly_drawn(sounds):
  task = TaskAugmentation(sounds[1], "one")
  drawn = [task.partner((1, e, "a", 3), 3, 8) for e in range(700)]
  counts = np.bincount(np.array(drawn, int), minlength=8)
  assert counts[3] == 0
  assert counts[[0, 1, 2, 4, 5, 6, 7]].min() > 60
  assert task.partner((1, 0, "a", 0), 0, 1) is None


def test_joined_texts_fit_no_bucket(sounds):
  config = override(sounds[1], ["data.text_buckets=(16,)"])
  with pytest.raises(ConfigError, match=r"mixup: joined texts.*text_buckets"):
    check_inputs(config)


# ---------------------------------------------------------------------- frames
def chosen(name, available, duration=0.0, rng=None, **options):
  geometry = Geometry(4, 32, sampling=name, **options)
  return SAMPLINGS[name](available, duration, geometry, rng).tolist()


def test_frames_of_a_clip():
  assert chosen("chunk", 40) == [4, 14, 24, 34]
  assert chosen("dense", 40, stride=3) == [15, 18, 21, 24]
  assert chosen("dense", 4, stride=3) == [0, 3, 3, 3]
  # Ten seconds at four frames per second, one every two seconds: 1 s apart
  # from both ends.
  assert chosen("fps", 40, 10.0, fps=0.5) == [8, 16, 24, 32]
  assert chosen("fps", 40, 10.0, fps=0.2) == [10, 30, 30, 30]
  assert chosen("fps", 1, fps=1.0) == [0, 0, 0, 0]
  with pytest.raises(DecodeError, match="frame_rate"):
    chosen("fps", 40)
  starts = set()
  for seed in range(200):
    rng = np.random.default_rng(seed)
    dense = np.array(chosen("dense", 40, rng=rng, stride=3))
    assert (np.diff(dense) == 3).all()
    fps = np.array(chosen("fps", 40, 10.0, rng=rng, fps=1.0))
    assert np.abs(np.diff(fps) - 4).max() <= 1
    starts.add((dense[0], fps[0]))
  assert {s[0] for s in starts} == set(range(31))
  assert {s[1] for s in starts} == set(range(2, 26))


def test_frames_per_second_are_seconds():
  """Twenty frames in the first second, then one each second for nine more."""
  times = [*range(0, 1000, 50), *range(1000, 10_000, 1000)]
  data = file_of("mp4", greys(range(0, 232, 8)), times=times)
  record = Record(id="x", media={"video": lambda: data})
  config = config_of(groups=("tv",))
  for cache in (None, DecodedCache(64)):
    inputs = {
      "video": InputConfig(frames=4, sampling="fps", fps=0.4, mode="plain")
    }
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, inputs=inputs)
    )
    got = load_inputs(
      config, record, "", ("video",), None, cache=cache, index=0
    )["video"]
    levels = got[:, 16, 16, 0].astype(int) / 8
    # In the middle of 2.5 s each, the frame of that second is shown.
    want = [20 + s - 1 for s in (1.25, 3.75, 6.25, 8.75)]
    assert np.abs(levels - want).max() <= 1.5
  clip = VideoClip(data, Geometry(4, 32))
  assert clip.duration == pytest.approx(9.5, abs=1.0)


def test_lists_of_frames_say_their_rate(pictures):
  frames = [png(10 * i) for i in range(20)]
  record = Record(id="x", media={"video": lambda: frames})
  inputs = {"video": InputConfig(frames=2, sampling="fps", fps=1.0)}
  source = dataclasses.replace(pictures.data.sources["a"], frame_rate=4.0)
  data = dataclasses.replace(
    pictures.data, inputs=inputs, sources={"a": source}
  )
  config = dataclasses.replace(pictures, data=data)
  got = load_inputs(config, record, "a", ("video",), None)["video"]
  assert got[:, 0, 0, 0].tolist() == [80, 120]
