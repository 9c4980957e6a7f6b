"""Sound: what sets pitch, decay and rhythm."""

import itertools

import numpy as np
import pytest

from mico_jax import world
from mico_jax.world import scene as facts
from mico_jax.world import sound

LOOK = (0.5,) * len(world.World().scene(0).look)


def solid(shape="sphere", size="large", material="metal"):
  return facts.Solid(shape, "red", size, material, "left", "still")


def test_range_length_and_type():
  w = world.World()
  for i in range(50):
    audio = w.render(w.scene(i), fields=("audio",))["audio"]
    assert audio.shape == (16000,)
    assert audio.dtype == np.float32
    assert 0.2 < np.abs(audio).max() <= 1.0
  assert sound.render_sound(w.scene(0), seconds=2.5).shape == (40000,)


@pytest.mark.parametrize("size", facts.SIZES)
@pytest.mark.parametrize("shape", facts.SHAPES)
def test_tone_equals_the_sum_of_damped_sines(shape, size):
  s = solid(shape, size, "glass")
  t = np.arange(4000) / sound.SAMPLE_RATE
  decay, fall = sound.MATERIAL_SOUND["glass"]
  ratios = np.array(sound.PARTIALS[shape])
  amplitude = ratios**-fall / (ratios**-fall).sum() * 0.7
  expected = sum(
    a
    * np.exp(-t * r**sound.DECAY_FALL / decay)
    * np.sin(2 * np.pi * sound.PITCH[size] * r * t)
    for a, r in zip(amplitude, ratios, strict=True)
  )
  np.testing.assert_allclose(sound.tone(s, 4000), expected, atol=2e-5)


def test_size_sets_the_pitch():
  peaks = {}
  for size in facts.SIZES:
    wave = sound.tone(solid(size=size), 16000)
    peaks[size] = np.abs(np.fft.rfft(wave)).argmax()
  assert abs(peaks["small"] - sound.PITCH["small"]) <= 2
  assert abs(peaks["large"] - sound.PITCH["large"]) <= 2


def test_material_sets_the_decay():
  def length(material):
    wave = np.abs(sound.tone(solid(material=material), 32000))
    return np.flatnonzero(wave > 0.01 * wave.max()).max()

  lengths = [length(m) for m in ("metal", "glass", "wood", "stone")]
  for longer, shorter in itertools.pairwise(lengths):
    assert longer > 2.5 * shorter


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("strikes", facts.STRIKES)
def test_solids_sound_in_their_order(count, strikes):
  solids = tuple(
    facts.Solid("sphere", "red", size, "wood", place, "still")
    for size, place in zip(
      ("small", "large", "small")[:count], facts.PLACES, strict=False
    )
  )
  scene = facts.Scene(solids, strikes, "room", "anna", LOOK)
  audio = sound.render_sound(scene)
  slot = 16000 // count
  for i, s in enumerate(solids):
    for k in range(1 + facts.STRIKES.index(strikes)):
      onset = i * slot + k * int(sound.STRIKE_GAP * 16000)
      spectrum = np.abs(np.fft.rfft(audio[onset : onset + 1200], 16000))
      assert abs(spectrum.argmax() - sound.PITCH[s.size]) < 20
      if onset:
        quiet = np.abs(audio[onset - 40 : onset]).max()
        assert quiet < 0.1 * np.abs(audio[onset : onset + 400]).max()


def test_the_table_of_partials_stays_below_half_the_sample_rate():
  for shape in facts.SHAPES:
    highest = max(sound.PARTIALS[shape]) * max(sound.PITCH.values()) * 1.03
    assert highest < sound.SAMPLE_RATE / 2
