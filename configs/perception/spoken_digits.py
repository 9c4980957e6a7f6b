"""Spoken digits (Free Spoken Digit Dataset).

    mico-jax pretrain --config perception/spoken_digits:PATH/spoken_digits/manifest.jsonl

Behind a comma "validation": settings are chosen on takes 5 to 9 of the training
split; or "without=jackson": trained on the training takes of the other
speakers, and measured on all recordings of this one.
"""  # noqa: E501

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

WITHOUT = "without="
SPEAKERS = ("george", "jackson", "nicolas", "yweweler")


def get_config(
  argument: str = "spoken_digits/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of spoken_digits.

  Args:
    argument: "MANIFEST", "MANIFEST,validation" or "MANIFEST,without=SPEAKER".

  Raises:
    ConfigError: for an unknown speaker or another word behind the comma.
  """
  manifest, _, part = argument.partition(",")
  without, speaker = part.startswith(WITHOUT), part.removeprefix(WITHOUT)
  data = small_sets.sources(
    manifest if without else argument,
    captions={"audio": "class_name"},
    held=({"take": tuple(range(10, 50))}, {"take": tuple(range(5, 10))}),
  )
  if without:
    if speaker not in SPEAKERS:
      raise c.ConfigError(
        f"no speaker {speaker!r} to leave out; known: {', '.join(SPEAKERS)}."
      )
    others = tuple(s for s in SPEAKERS if s != speaker)
    data = {
      "train": dataclasses.replace(data["train"], where={"speaker": others}),
      "test": dataclasses.replace(
        data["test"], split="", where={"speaker": speaker}
      ),
    }
  config = small_sets.make(
    "spoken_digits",
    data,
    vision=small_sets.convnet(64, 48, (2, 2), patch_size=8),
    heads=("t", "a"),
    frame_table={"audio": 1},
    groups={"ta": {"audio": 1.0}},
    # 64 frames are 0.64 seconds; 19 in 20 recordings are shorter.
    inputs={"audio": c.InputConfig(frames=1, mode="plain")},
    augment=small_sets.SOUNDS,
    batch_size=128,
    steps=300,
  )
  return c.to_config_dict(config)
