"""Sound of a scene by modal synthesis.

A struck solid sounds with a few damped partials: size sets the pitch, shape the
ratios of the partials, material their decay and brightness. The solids are
struck one after another from left to right, each damped before the next. The
strikes of one solid are close together, so that their number differs from the
number of solids. Nothing else of the scene is audible.

A damped partial is z**t for a complex z, and t = 128 a + b, so a whole tone is
one small matrix product of powers instead of a sine and an exponential per
sample.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mico_jax.world.scene import STRIKES, Scene, Solid, stream

SAMPLE_RATE = 16000  # Hz
STRIKE_GAP = 0.1  # seconds between strikes of the same solid
PITCH = {"small": 720.0, "large": 270.0}  # Hz, of the lowest partial
PARTIALS = {
  "sphere": (1.0, 2.0),
  "cube": (1.0, 1.5, 2.2, 3.1),
  "cylinder": (1.0, 2.76, 5.4, 8.9),
  "cone": (1.0, 6.0, 7.3, 8.6),
}
# Material -> decay time (seconds to 1/e of the lowest partial), and how fast
# the amplitude falls with the ratio of a partial (0: all equally loud).
MATERIAL_SOUND = {
  "metal": (0.5, 0.5),
  "glass": (0.16, 0.0),
  "wood": (0.05, 1.0),
  "stone": (0.016, 0.4),
}
DECAY_FALL = 0.3  # a partial of ratio r decays r**0.3 times faster
NOISE = 0.002  # amplitude of the noise floor
FADE = 0.03  # seconds, in which a tone is damped before the next strike

_BLOCK = 128
_NOISE_TABLE = (
  NOISE * (2.0 * stream("noise", index=0, count=2 * SAMPLE_RATE) - 1.0)
).astype(np.float32)
_COLUMNS = np.arange(_BLOCK)[None, :]
_FADE_OUT = np.linspace(1.0, 0.0, int(FADE * SAMPLE_RATE), dtype=np.float32)


def tone(
  solid: Solid, samples: int, *, pitch: float = 1.0, gain: float = 0.7
) -> Float[np.ndarray, " samples"]:
  """Sound of one strike of a solid.

  Args:
    solid: with its shape, size and material.
    samples: length, at 16 kHz.
    pitch: factor on the frequency.
    gain: largest amplitude, in units of full scale.
  """
  ratios = np.array(PARTIALS[solid.shape])
  decay, fall = MATERIAL_SOUND[solid.material]
  amplitude = ratios**-fall
  amplitude *= gain / amplitude.sum()
  rate = 2j * np.pi * PITCH[solid.size] * pitch * ratios
  rate = (rate - ratios**DECAY_FALL / decay) / SAMPLE_RATE
  # The rest is below -80 dB.
  audible = min(samples, int(9.2 * decay * SAMPLE_RATE) + 1)
  rows = -(-audible // _BLOCK)
  left = np.exp(rate[None, :] * (_BLOCK * np.arange(rows))[:, None])
  right = -1j * amplitude[:, None] * np.exp(rate[:, None] * _COLUMNS)
  wave = np.concatenate([left.real, -left.imag], axis=1).astype(
    np.float32
  ) @ np.concatenate([right.real, right.imag], axis=0).astype(np.float32)
  out = np.zeros(samples, np.float32)
  out[:audible] = wave.reshape(-1)[:audible]
  return out


def render_sound(
  scene: Scene, *, seconds: float = 1.0
) -> Float[np.ndarray, " samples"]:
  """The sound of a scene: mono, 16 kHz, float32 in [-1, 1].

  Args:
    scene: to play.
    seconds: length; at least 0.1 s for each strike of each solid.

  Raises:
    ValueError: if the strikes do not fit.
  """
  strikes = 1 + STRIKES.index(scene.strikes)
  samples = round(seconds * SAMPLE_RATE)
  slot = samples // len(scene.solids)
  gap = int(STRIKE_GAP * SAMPLE_RATE)
  if slot < strikes * gap:
    need = STRIKE_GAP * strikes * len(scene.solids)
    raise ValueError(f"{seconds=} is too short; this scene needs {need:.1f} s.")
  offset = int(scene.look_of("noise") * SAMPLE_RATE)
  repeats = -(-samples // SAMPLE_RATE)
  noise = _NOISE_TABLE[offset : offset + min(samples, SAMPLE_RATE)]
  audio = np.tile(noise, repeats)[:samples]
  for i, solid in enumerate(scene.solids):
    wave = tone(
      solid,
      slot - (strikes - 1) * gap,
      pitch=1.06 ** (scene.look_of("pitch", i) - 0.5),
      gain=0.6 + 0.3 * scene.look_of("loudness", i),
    )
    for k in range(strikes):
      start = i * slot + k * gap
      stop = (i + 1) * slot if k == strikes - 1 else start + gap
      audio[start:stop] += wave[: stop - start]
      audio[stop - len(_FADE_OUT) : stop] *= _FADE_OUT
  return audio
