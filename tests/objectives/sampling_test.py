"""Keys, fingerprints and the token masker."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import rng
from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.objectives import sampling
from mico_jax.testing.objective_contract import TOKENIZER


def keys(rows, seed=0, start=0):
  row = jnp.arange(start, start + rows, dtype=jnp.int32)
  return rng.row_keys(seed, jnp.int32(3), row)


def test_row_keys_depend_on_the_row_only():
  whole = jax.random.key_data(keys(8))
  half = jax.random.key_data(keys(4, start=4))
  np.testing.assert_array_equal(whole[4:], half)
  assert len({tuple(k) for k in np.asarray(whole)}) == 8


def test_sites_are_independent():
  a = rng.row_uniform(rng.at_site(keys(2), "a"), 500)
  b = rng.row_uniform(rng.at_site(keys(2), "b"), 500)
  assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.15


def test_expand_is_row_major():
  k = keys(2)
  many = rng.expand(k, 3)
  one = rng.expand(k[1:], 3)
  np.testing.assert_array_equal(
    jax.random.key_data(many)[3:], jax.random.key_data(one)
  )


def test_row_subset_is_uniform_sorted_and_without_repeats():
  subset = np.asarray(rng.row_subset(keys(2000), 6, 3))
  assert (np.diff(subset, axis=1) > 0).all()
  share = np.bincount(subset.ravel(), minlength=6) / 2000
  np.testing.assert_allclose(share, 0.5, atol=0.05)


def test_fingerprint_ignores_padding_only():
  ids = np.array(
    [[1, 7, 8, 2, 0], [1, 8, 7, 2, 0], [1, 7, 8, 2, 0], [1, 7, 2, 0, 0]]
  )
  short = sampling.fingerprint(jnp.asarray(ids, jnp.int32), pad=0)
  longer = np.pad(ids, ((0, 0), (0, 4)))
  long = sampling.fingerprint(jnp.asarray(longer, jnp.int32), pad=0)
  np.testing.assert_array_equal(short, long)
  distinct = {tuple(row) for row in np.asarray(short)}
  assert len(distinct) == 3
  assert tuple(np.asarray(short[0])) == tuple(np.asarray(short[2]))


def test_fingerprints_of_many_short_texts_differ():
  pairs = np.stack(np.meshgrid(np.arange(1, 90), np.arange(1, 90)), -1)
  ids = pairs.reshape(-1, 2).astype(np.int32)
  prints = np.asarray(sampling.fingerprint(jnp.asarray(ids), pad=0))
  assert len({tuple(p) for p in prints}) == len(ids)
  for half in prints.T:  # each half alone: at most a few collisions
    assert len(set(half.tolist())) > len(ids) - 5


@pytest.mark.parametrize("prob", [0.05, 0.6, 0.99, 1.0])
def test_choice_has_the_law_of_redrawing_until_one_is_chosen(prob):
  eligible = np.array([False, True, False, True, True])
  rows = 20000
  chosen = np.asarray(
    jax.jit(lambda k, e: sampling.choose_tokens(k, e, prob=prob))(
      keys(rows), jnp.tile(jnp.asarray(eligible), (rows, 1))
    )
  )
  assert not chosen[:, ~eligible].any()
  assert chosen.any(axis=1).all()
  patterns = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
  patterns = patterns[patterns.any(axis=1)]
  law = np.prod(np.where(patterns == 1, prob, 1 - prob), axis=1)
  law = law / law.sum()
  seen = chosen[:, eligible]
  for pattern, expected in zip(patterns, law, strict=True):
    share = (seen == pattern).all(axis=1).mean()
    sigma = np.sqrt(max(expected * (1 - expected), 1e-4) / rows)
    assert abs(share - expected) < 5 * sigma, (pattern, share, expected)


def test_rows_without_words_choose_none():
  none = jnp.zeros((3, 4), bool)
  assert not sampling.choose_tokens(keys(3), none, prob=0.6).any()


def test_masker():
  rows = 4000
  text = np.array([1, 9, 11, 13, 2, 0, 0], np.int32)
  ids = jnp.tile(jnp.asarray(text), (rows, 1))
  run = jax.jit(
    lambda k, x: sampling.mask_tokens(k, x, info=TOKENIZER, prob=0.6)
  )
  masked, labels = map(np.asarray, run(keys(rows), ids))
  chosen = labels != IGNORE
  assert not chosen[:, [0, 5, 6]].any()
  assert chosen[:, 4].any()  # sep can be chosen
  assert (labels[chosen] == np.asarray(ids)[chosen]).all()
  assert (masked[~chosen] == np.asarray(ids)[~chosen]).all()
  hidden = masked[chosen]
  same = (hidden == np.asarray(ids)[chosen]).mean()
  assert abs((hidden == TOKENIZER.mask).mean() - 0.8) < 0.015
  assert abs(same - (0.1 + 0.1 / 35)) < 0.015
  replaced = hidden[(hidden != TOKENIZER.mask) & (hidden != labels[chosen])]
  low, high = TOKENIZER.random_range
  assert replaced.min() >= low
  assert replaced.max() < high
  assert len(set(replaced.tolist())) == high - low
