"""Loss and gradient of every objective against a plain float64 computation.

The plain form encodes each modality and each row alone, reads one text after
the other without padding, and loops over rows and pairs in Python.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.modalities import by_letter, letters
from mico_jax.models import build
from mico_jax.objectives.masked_modelling import decode
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train import state as train_state
from mico_jax.train.step import make_loss

ROWS = 3
# Compiled once, run once.
CHEAP = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
GROUP = "tva"


def given_draws(name, batch, rng):
  """Draws for one objective, as the step takes them."""
  text, answer = batch["text"][GROUP], batch["answer"]
  if name == "matching":
    return {
      "context_index": np.array([1, 2, 0], np.int32),
      "text_index": np.array([2, 0, 1], np.int32),
    }
  if name in ("captioning", "question_answering"):
    ids = text if name == "captioning" else answer
    chosen = (ids > TOKENIZER.mask) & (rng.random(ids.shape) < 0.7)
    return {
      "ids": np.where(chosen, TOKENIZER.mask, ids).astype(np.int32),
      "labels": np.where(chosen, ids, IGNORE).astype(np.int32),
    }
  if name == "masked_modelling":
    return {"token_indices": np.array([[0], [1], [3]], np.int32)}
  return {}


def next_tokens(name, batch):
  """What a tower that predicts the next token reads, and its labels."""
  ids = (
    batch["answer"] if name == "question_answering" else batch["text"][GROUP]
  )
  labels = np.full_like(ids, IGNORE)
  labels[:, :-1] = np.where(ids[:, 1:] == TOKENIZER.pad, IGNORE, ids[:, 1:])
  return {"ids": ids, "labels": labels}


def nll(logits, label):
  return jax.nn.logsumexp(logits) - logits[label]


class Plain:
  """The model, one row at a time."""

  def __init__(self, model, params, batch):
    self.model, self.params, self.batch = model, params, batch

  def tokens(self, letter, row):
    key = by_letter(letter).key
    frames = jnp.asarray(self.batch["pixels"][key][row : row + 1])
    return self.model.encode(self.params, key, frames)

  @functools.cache  # noqa: B019
  def context(self, row):
    tokens = {c: self.tokens(c, row) for c in letters(GROUP)}
    context = self.model.context(self.params, letters(GROUP), tokens)
    return self.model.project_context(self.params, context)

  def features(self, row):
    pooled = {
      c: self.model.pool(self.params, by_letter(c).key, self.tokens(c, row))
      for c in letters(GROUP)
    }
    ids = self.batch["text"][GROUP][row]
    pooled["t"] = self.model.pool_text(self.read(ids), self.real(ids))
    embed = self.model.embed
    return (
      embed(self.params, letters(GROUP), pooled)[0],
      embed(self.params, "t", pooled)[0],
    )

  def real(self, ids):
    ids = np.asarray(ids)
    return jnp.asarray(ids[ids != TOKENIZER.pad])[None]

  def read(self, ids, **options):
    return self.model.text(self.params, self.real(ids), **options)


def contrastive(plain, draws, weight):
  pairs = [plain.features(row) for row in range(ROWS)]
  temperature, total = plain.model.temperature(plain.params), 0.0
  rows = [r for r in range(ROWS) if weight[r] > 0]
  for side in (0, 1):
    for i in rows:
      logits = jnp.stack(
        [pairs[i][side] @ pairs[j][1 - side] / temperature for j in rows]
      )
      value = 0.9 * nll(logits, rows.index(i))
      value += 0.1 * sum(nll(logits, j) for j in range(len(rows))) / len(rows)
      total += 0.5 * weight[i] * value
  return total / weight.sum()


def matching(plain, draws, weight):
  total = 0.0
  texts = plain.batch["text"][GROUP]
  negatives = plain.batch["negative_text"][GROUP]
  for i in range(ROWS):
    if weight[i] == 0:
      continue
    pairs = [
      (texts[i], i, 1),
      (texts[i], int(draws["context_index"][i]), 0),
      (texts[int(draws["text_index"][i])], i, 0),
      *((ids, i, 0) for ids in negatives[i]),
    ]
    value = 0.0
    for ids, row, label in pairs:
      hidden = plain.read(ids, context=plain.context(row))
      read = plain.real(ids)
      logits = plain.model.matching_logits(plain.params, hidden, read)[0]
      value += nll(logits, label) / len(pairs)
    total += weight[i] * value
  return 0.1 * total / weight.sum()


def captioning(plain, draws, weight):
  total, count = 0.0, 0.0
  for i in range(ROWS):
    hidden = plain.read(
      draws["ids"][i], context=plain.context(i), attention="causal"
    )
    logits = plain.model.lm_logits(plain.params, hidden)[0]
    for j in np.flatnonzero(draws["labels"][i] != IGNORE):
      total += weight[i] * nll(logits[j], draws["labels"][i, j])
      count += weight[i]
  return total / count


def answer_logits(plain, question, answer, context):
  """Logits at the tokens of the answer, which reads from left to right."""
  question, answer = (x[x != TOKENIZER.pad] for x in (question, answer))
  ids = np.concatenate([question, answer])
  hidden = plain.read(ids, context=context, attention="causal")
  return plain.model.lm_logits(plain.params, hidden)[0, len(question) :]


def question_answering(plain, draws, weight):
  total, count = 0.0, 0.0
  for i in range(ROWS):
    question = plain.batch["question"][i]
    answer, prefix = draws["ids"][i], len(question)
    if plain.model.tower.next_token:
      logits = answer_logits(plain, question, answer, plain.context(i))
      for j in np.flatnonzero(draws["labels"][i] != IGNORE):
        total += weight[i] * nll(logits[j], draws["labels"][i, j])
        count += weight[i]
      continue
    ids = np.concatenate([question, answer])
    mask = np.zeros((len(ids), len(ids)), bool)
    mask[:, :prefix] = question != TOKENIZER.pad
    mask[prefix:, prefix:] = np.tril(np.ones((len(answer),) * 2, bool))
    mask[:, prefix:] &= answer != TOKENIZER.pad
    hidden = plain.model.text(
      plain.params,
      jnp.asarray(ids)[None],
      mask=jnp.asarray(mask)[None],
      context=plain.context(i),
    )
    logits = plain.model.lm_logits(plain.params, hidden)[0, prefix:]
    for j in np.flatnonzero(draws["labels"][i] != IGNORE):
      total += weight[i] * nll(logits[j], draws["labels"][i, j])
      count += weight[i]
  return total / count


def masked_modelling(plain, draws, weight):
  total = 0.0
  params = plain.params["objective"]["masked_modelling"]
  for i in range(ROWS):
    seen = int(draws["token_indices"][i, 0])
    for letter in letters(GROUP):
      key = by_letter(letter).key
      frames = plain.batch["pixels"][key][i : i + 1]
      indices = jnp.asarray([[seen]])
      tokens = plain.model.encode(
        plain.params, key, jnp.asarray(frames), token_indices=indices
      )
      for t, frame in enumerate(np.asarray(frames[0])):
        predicted = decode(params, tokens[:, t, 1:], indices)[0]
        for n in range(4):
          if n == seen:
            continue
          y, x = 4 * (n // 2), 4 * (n % 2)
          patch = frame[y : y + 4, x : x + 4].reshape(-1)
          target = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-6)
          error = ((predicted[n] - target) ** 2).mean()
          total += weight[i] * error / (3 * len(frames[0]) * 2)
  return total / weight.sum()


PLAIN = {
  f.__name__: f
  for f in (
    contrastive,
    matching,
    captioning,
    question_answering,
    masked_modelling,
  )
}


CAUSAL = dataclasses.replace(
  TINY_MODEL,
  text=dataclasses.replace(
    TINY_MODEL.text, encoder="causal", kv_heads=1, norm_eps=1e-6
  ),
)


@pytest.mark.parametrize(
  ("tower", "name"),
  [
    *(("bert", name) for name in PLAIN),
    *(("causal", name) for name in PLAIN if name != "masked_modelling"),
  ],
)
def test_loss_and_gradients(tower, name):
  tiny_model = CAUSAL if tower == "causal" else TINY_MODEL
  config = tiny_config({name: (GROUP,)}, batch_size=ROWS, model=tiny_model)
  model = build(config.model)

  @jax.jit
  def init(key):
    return jax.tree.map(  # nothing left at zero
      lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape),
      train_state.init_params(model, config, key),
    )

  params = init(jax.random.key(1))
  batch = fake_batch((GROUP,), rows=ROWS, negatives=1, seed=3)
  batch["weight"] = np.array([1.0, 0.5, 1.0], np.float32)
  draws = given_draws(name, batch, np.random.default_rng(0))
  batch["draws"] = {name: {GROUP: draws}}
  if tower == "causal" and name in ("captioning", "question_answering"):
    del batch["draws"]
    draws = next_tokens(name, batch)
  loss = make_loss(model, config, config.tasks["main"], TOKENIZER)
  ours = jax.jit(
    jax.value_and_grad(
      lambda p, b: loss(p, b, step=jnp.int32(0), train=False), has_aux=True
    ),
    compiler_options=CHEAP,
  )
  with jax.default_matmul_precision("highest"):
    (value, _), grads = ours(params, batch)

  with jax.enable_x64(True):
    wide = lambda x: np.asarray(x, np.float64)
    double = build(dataclasses.replace(tiny_model, dtype="float64"))
    weight = wide(batch["weight"])
    pixels = {k: wide(v) for k, v in batch["pixels"].items()}
    data = {**batch, "pixels": pixels}
    reference = jax.jit(
      jax.value_and_grad(
        lambda p: PLAIN[name](Plain(double, p, data), draws, weight)
      ),
      compiler_options=CHEAP,
    )
    expected, wanted = reference(jax.tree.map(wide, params))
    wanted = jax.tree.map(np.asarray, wanted)
  np.testing.assert_allclose(value, expected, rtol=2e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6, rtol=2e-4),
    grads,
    wanted,
  )
