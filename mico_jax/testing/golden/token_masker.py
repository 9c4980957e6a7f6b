"""Case token_masker: the official draws, replayed through our masker.

Our masker draws on the device, by row; the official one from Python's random
module, row after row. The replay makes the official draws and hands them to the
function that both share, `apply_mask`; that our own draws follow the same law
is tested apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax.objectives.sampling import apply_mask
from mico_jax.testing.golden.case import Check, Folder

PAD = 0


def replay(
  tokens: Int[np.ndarray, "B L"],
  *,
  prob: float,
  seed: int,
  low: int,
  high: int,
) -> tuple[
  Bool[np.ndarray, "B L"], Float[np.ndarray, "B L"], Int[np.ndarray, "B L"]
]:
  """The draws of the official masker, in its order.

  Args:
    tokens: ids.
    prob: of choosing a token.
    seed: of Python's random module.
    low: first id of random replacements.
    high: last id + 1.

  Returns:
    (chosen, action in [0, 1], random ids).
  """
  source = random.Random(seed)
  chosen = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(tokens):
    while not chosen[row].any():
      for j in range(1, len(ids)):
        if ids[j] != PAD and source.random() < prob:
          chosen[row, j] = True
  action = np.ones(tokens.shape, np.float32)
  random_ids = np.zeros(tokens.shape, np.int32)
  choices = list(range(low, high))
  for row, j in np.argwhere(chosen):
    drawn = source.random()
    # Compared in float64 there, float32 here: keep the branch, not the number.
    action[row, j] = 0.0 if drawn < 0.8 else 0.85 if drawn < 0.9 else 1.0
    if 0.8 <= drawn < 0.9:
      random_ids[row, j] = source.choice(choices)
  return chosen, action, random_ids


def token_masker(folder: Folder) -> Iterator[Check]:
  """Masked ids and labels of every stored case, equal to the last id."""
  config = folder.config
  low, high = map(int, re.findall(r"\d+", config["random_range"])[:2])
  for case in config["cases"]:
    index = case["index"]
    tokens = folder.inputs[f"{index}.tokens"]
    chosen, action, random_ids = replay(
      tokens,
      prob=case["mask_prob"],
      seed=case["python_random_seed"],
      low=low,
      high=high,
    )
    masked, labels = apply_mask(
      jnp.asarray(tokens),
      jnp.asarray(chosen),
      action=jnp.asarray(action),
      random_ids=jnp.asarray(random_ids),
      mask_id=config["mask_token"],
    )
    for name, value in (("masked", masked), ("labels", labels)):
      output = f"{index}.{name}"
      yield Check(output, value, folder.outputs[output], 0.0)
