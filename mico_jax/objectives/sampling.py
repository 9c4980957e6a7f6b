"""Random draws and fingerprints that do not depend on the topology.

Their keys are those of `mico_jax.rng`.

Source of the token masker: VAST, arXiv:2305.18500, and the official MiCo code;
its proportions are those of BERT, arXiv:1810.04805, section 3.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mico_jax import rng
from mico_jax.aliases import SpecialIds
from mico_jax.kernels.cross_entropy import IGNORE


def fingerprint(ids: Int[Array, "B L"], *, pad: int) -> UInt32[Array, "B 2"]:
  """64 bits per text that are equal for equal texts; padding does not count.

  Two different texts of a batch of B collide with probability about
  B^2 / 2^65.
  """
  position = jnp.arange(ids.shape[1], dtype=jnp.uint32)[None, :]
  real = ids != pad
  token = ids.astype(jnp.uint32)
  halves = []
  for salt in (0x9E3779B9, 0x85EBCA6B):
    seat = rng.scramble(position * jnp.uint32(2) + jnp.uint32(salt))
    word = rng.scramble(rng.scramble(token + jnp.uint32(salt)) ^ seat)
    word = jnp.where(real, word, jnp.zeros_like(word))
    halves.append(rng.scramble(word.sum(axis=1, dtype=jnp.uint32)))
  return jnp.stack(halves, axis=1)


def choose_tokens(
  keys: Key[Array, " B"], eligible: Bool[Array, "B L"], *, prob: float
) -> Bool[Array, "B L"]:
  """Chooses each eligible token with `prob`, at least one per row.

  The distribution is exactly that of redrawing a row until one token is chosen,
  as the token masker of the official MiCo code does, but without a loop: the
  first chosen token follows a truncated geometric law, those behind it are
  independent. Rows without eligible tokens choose none.

  Args:
    keys: one key per row.
    eligible: tokens that may be chosen.
    prob: probability in (0, 1].
  """
  rank = jnp.cumsum(eligible.astype(jnp.int32), axis=1)  # 1-based
  total = rank[:, -1]
  uniform = rng.row_uniform(keys, eligible.shape[1] + 1)
  if prob >= 1:
    return eligible
  keep = jnp.log1p(jnp.asarray(-prob, jnp.float32))  # log(1 - prob)
  some = -jnp.expm1(total.astype(jnp.float32) * keep)  # P(at least one)
  first = jnp.log1p(-uniform[:, 0] * some) / keep
  first = 1 + jnp.floor(first).astype(jnp.int32)
  first = jnp.clip(first, 1, jnp.maximum(total, 1))[:, None]
  later = (rank > first) & (uniform[:, 1:] < prob)
  return eligible & ((rank == first) | later)


def apply_mask(
  ids: Int[Array, "B L"],
  chosen: Bool[Array, "B L"],
  *,
  action: Float[Array, "B L"],
  random_ids: Int[Array, "B L"],
  mask_id: int,
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
  """Hides the chosen tokens: 80% mask, 10% random, 10% unchanged.

  Source: BERT, arXiv:1810.04805, section 3.1.

  Args:
    ids: the true text.
    chosen: tokens to predict.
    action: uniform in [0, 1): below 0.8 masks, below 0.9 replaces.
    random_ids: replacements.
    mask_id: the mask token.

  Returns:
    (masked ids, labels: the true id where chosen, else `IGNORE`).
  """
  hidden = jnp.where(action < 0.8, jnp.full_like(ids, mask_id), random_ids)
  masked = jnp.where(chosen & (action < 0.9), hidden, ids)
  return masked, jnp.where(chosen, ids, jnp.full_like(ids, IGNORE))


def mask_tokens(
  keys: Key[Array, " B"],
  ids: Int[Array, "B L"],
  *,
  info: SpecialIds,
  prob: float,
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
  """The token masker of captioning and question answering.

  The first token, cls and padding are never chosen; sep can be.

  Returns:
    (masked ids, labels), as `apply_mask`.

  Source: the token masker of the official MiCo code.
  """
  length = ids.shape[1]
  eligible = (ids != info.pad) & (ids != info.cls)
  eligible = eligible & (jnp.arange(length) > 0)[None, :]
  low, high = info.random_range
  random_ids = jax.vmap(lambda k: jax.random.randint(k, (length,), low, high))(
    rng.at_site(keys, "replace")
  )
  return apply_mask(
    ids,
    choose_tokens(rng.at_site(keys, "choose"), eligible, prob=prob),
    action=rng.row_uniform(rng.at_site(keys, "action"), length),
    random_ids=random_ids.astype(ids.dtype),
    mask_id=info.mask,
  )


def next_tokens(
  ids: Int[Array, "B L"], *, info: SpecialIds
) -> Int[Array, "B L"]:
  """For each token the id of the one behind it; `IGNORE` where there is none.

  Every token but the first is a label once; padding never is.
  """
  following = jnp.roll(ids, -1, axis=1).at[:, -1].set(info.pad)
  return jnp.where(following == info.pad, IGNORE, following)


def scored_tokens(
  keys: Key[Array, " B"],
  ids: Int[Array, "B L"],
  *,
  info: SpecialIds,
  prob: float,
  next_token: bool,
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
  """Ids that a tower reads of a text, and those that its states predict.

  Source: VAST, arXiv:2305.18500, for masks; LLaMA, arXiv:2302.13971, for next
  tokens.

  Args:
    keys: one key per row.
    ids: the true text.
    info: special ids.
    prob: of `mask_tokens`; nothing is masked with `next_token`.
    next_token: see `mico_jax.models.text_tower.TextTower`.

  Returns:
    (ids to read, labels: the id to predict or `IGNORE`).
  """
  if next_token:
    return ids, next_tokens(ids, info=info)
  return mask_tokens(keys, ids, info=info, prob=prob)
