"""Computation of a checkpoint's self-check: raw inputs to all outputs.

For every modality three raw samples (an ordinary one, a near-constant one that
reveals a changed LayerNorm epsilon, and one of another size that reveals a
changed resizing) pass decoding, preprocessing, encoder, heads, context,
matching and captioning, in float32 at the highest matrix precision on CPU. All
of it is one compiled function, so a check costs one compilation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore, selfcheck
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.inference.prepare import Preparer, trained_contexts
from mico_jax.modalities import MODALITIES
from mico_jax.models import build, forward
from mico_jax.models.text_tower import ContextKV
from mico_jax.train import lora

VARIANTS = ("example", "near_constant", "off_size")
CAPTION_TOKENS = 3
LOGITS = "matching_logits"
# Parameters. An import of a larger model computes no self-check by default,
# which would take far longer on a CPU than the import; nor does a run of
# several processes, where one host would have to hold all parameters.
SMALL = 400_000_000
_PROMPT = "a red cube and a small ball"


def model_params(params: Mapping[str, Any], config: Config) -> dict[str, Any]:
  """A run's parameters as the model takes them, with merged low-rank deltas.

  Args:
    params: as trained; may hold low-rank deltas, and parameters of objectives,
      which are left out.
    config: of the run, for the scale of the deltas.
  """
  merged = lora.merge(params, alpha=config.optimizer.lora_alpha)
  return {k: v for k, v in merged.items() if k != "objective"}


def _raw(sample: Any) -> np.ndarray:
  """A decoded example as a raw array that `decode` accepts."""
  if isinstance(sample, np.ndarray):
    return sample
  return np.asarray(sample.take(range(len(sample))))


def _near_constant(array: np.ndarray) -> np.ndarray:
  """The same sample with a hundredth of its contrast."""
  mean = array.astype(np.float64).mean()
  flat = mean + 0.01 * (array.astype(np.float64) - mean)
  if array.dtype.kind in "iu":
    flat = np.rint(flat)
  return flat.astype(array.dtype)


def make_inputs(preparer: Preparer) -> dict[str, np.ndarray]:
  """Raw inputs of the self-check by name, such as "video/example"."""
  inputs = {"text": selfcheck.text_array(_PROMPT)}
  for key in preparer.keys:
    modality = MODALITIES[key]
    if modality.kind != "knowledge":
      continue
    geometry = preparer.geometry(key)
    other = dataclasses.replace(
      geometry, size=geometry.size * 5 // 3 + 3, frames=geometry.frames + 1
    )
    example = _raw(modality.example(geometry, 1))
    inputs[f"{key}/example"] = example
    inputs[f"{key}/near_constant"] = _near_constant(example)
    inputs[f"{key}/off_size"] = _raw(modality.example(other, 2))
  return inputs


@contextlib.contextmanager
def on_cpu():
  """Runs on the CPU backend; yields whether there is one."""
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    yield False
    return
  with jax.default_device(device):
    yield True


class SelfCheck:
  """The self-check of one config.

  Called with parameters it returns the arrays to store (`Extras.self_check`).

  Attributes:
    preparer: of the inputs.
    model: in float32.
    heads: joint heads to check.
    letters: of the context for matching and captions.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self.preparer = Preparer(config, tokenizer)
    self.model = build(
      dataclasses.replace(
        config.model,
        dtype="float32",
        matmul_precision="highest",
        remat="none",
        attention="xla",
      )
    )
    self.heads = _heads(config, self.preparer.keys)
    self.letters = _letters(config, self.preparer.keys)
    self._executable: Any = None
    self._lock = threading.Lock()

  def warm(self) -> None:
    """Compiles now, so that no save compiles during training."""
    with on_cpu():
      host, ids = self._prepare(make_inputs(self.preparer))
      self._compiled(self.model.abstract_params(), host, ids)

  def _compiled(self, params: Any, host: Any, ids: Any) -> Any:
    with self._lock:
      if self._executable is None:
        lowered = jax.jit(self._compute).lower(params, host, ids)
        self._executable = lowered.compile()
      return self._executable

  def __call__(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs and outputs of the parameters, ready to store."""
    inputs = make_inputs(self.preparer)
    arrays = {f"{selfcheck.INPUT}{k}": v for k, v in inputs.items()}
    return {**arrays, **self.outputs(params, inputs)}

  def outputs(
    self,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    logits: bool = False,
  ) -> dict[str, np.ndarray]:
    """Outputs for stored inputs, by name.

    Args:
      params: of the model.
      inputs: of `make_inputs`.
      logits: whether to include the matching logits ("matching_logits",
        [B, 2]), which are not stored.
    """
    with on_cpu():
      host, ids = self._prepare(inputs)
      params = model_params(params, self.preparer.config)
      params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
      run = self._compiled(params, host, ids)
      values = jax.device_get(run(params, host, ids))
    outputs = {f"{selfcheck.OUTPUT}ids/text": ids[0]}
    for name, value in values.items():
      if name.startswith("embed/") and name != "embed/text":
        for variant, row in zip(VARIANTS, value, strict=True):
          outputs[f"{selfcheck.OUTPUT}{name}/{variant}"] = row
      elif logits or name != LOGITS:
        outputs[f"{selfcheck.OUTPUT}{name}"] = value
    return outputs

  def problems(
    self, params: Mapping[str, Any], stored: Mapping[str, np.ndarray]
  ) -> list[str]:
    """Runs the check again and compares; one line per difference."""
    outputs = self.outputs(params, selfcheck.inputs(stored))
    return selfcheck.compare(stored, outputs)

  def _prepare(
    self, inputs: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], Int[np.ndarray, "B L"]]:
    host = {}
    for key in self.preparer.keys:
      if MODALITIES[key].kind == "knowledge":
        host[key] = np.stack(
          [
            self.preparer.prepare_one(key, inputs[f"{key}/{variant}"])
            for variant in VARIANTS
          ]
        )
    ids = self.preparer.prepare_one(
      "text", selfcheck.array_text(inputs["text"])
    )
    return host, np.repeat(ids[None], len(VARIANTS), axis=0)

  def _compute(
    self, params: Any, host: Mapping[str, jax.Array], ids: Int[Array, "B L"]
  ) -> dict[str, jax.Array]:
    model, config = self.model, self.preparer.config
    pad = self.preparer.tokenizer.info.pad
    encoded = forward.encode_inputs(model, config, params, host, pad=pad)
    names = {key: MODALITIES[key].letter for key in host}
    names |= {head: head for head in self.heads}
    rows = forward.embed(model, params, encoded, [*names.values()])
    outputs = {f"embed/{name}": rows[c] for name, c in names.items()}
    outputs["embed/text"] = forward.embed_text(model, params, ids[:1])[0]
    if not self.letters:
      return outputs
    context = forward.project(model, params, encoded, self.letters)
    logits = forward.match(model, params, ids, context)
    outputs[LOGITS] = logits
    outputs["matching"] = jax.nn.softmax(logits, axis=-1)[:, 1]
    outputs["caption"] = self._caption(params, context, len(VARIANTS))
    return outputs

  def _caption(
    self, params: Any, context: ContextKV, rows: int
  ) -> Int[Array, "B N"]:
    """The first tokens of greedy captions, by full passes without a cache."""
    info = self.preparer.tokenizer.info
    ids = jnp.full((rows, CAPTION_TOKENS + 1), info.mask, jnp.int32)
    ids = ids.at[:, 0].set(info.cls)

    def step(i: jax.Array, ids: jax.Array) -> jax.Array:
      # Token i is predicted at the [MASK] at i, or at the token before it.
      hidden = self.model.text(
        params,
        ids,
        attention="causal",
        mask=jnp.ones(ids.shape, bool),
        context=context,
      )
      read = i - int(self.model.tower.next_token)
      hidden = jax.lax.dynamic_index_in_dim(hidden, read, 1, keepdims=False)
      best = jnp.argmax(self.model.lm_logits(params, hidden), axis=-1)
      return ids.at[:, i].set(best.astype(jnp.int32))

    return jax.lax.fori_loop(1, CAPTION_TOKENS + 1, step, ids)[:, 1:]


def _heads(config: Config, keys: Sequence[str]) -> tuple[str, ...]:
  """Joint heads whose letters are all knowledge modalities of the model."""
  letters = {
    MODALITIES[k].letter for k in keys if MODALITIES[k].kind == "knowledge"
  }
  return tuple(
    head
    for head in config.model.heads
    if len(head) > 1 and set(head) <= letters
  )


def _letters(config: Config, keys: Sequence[str]) -> str:
  """Letters of the context for matching and captioning."""
  known = [
    MODALITIES[k].letter for k in keys if MODALITIES[k].kind == "knowledge"
  ]
  trained = (
    letters
    for letters in trained_contexts(config)
    if letters and set(letters) <= set(known)
  )
  return next(trained, known[0] if known else "")


def make_self_check(
  config: Config, tokenizer: Tokenizer
) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
  """The function that computes a checkpoint's self-check from parameters."""
  return SelfCheck(config, tokenizer)


def verify(
  checkpoint: restore.Checkpoint, tokenizer: Tokenizer
) -> tuple[list[str], bool]:
  """Runs the self-check of a checkpoint.

  Returns:
    One line per problem, and whether they may be mere numeric drift since there
    was no CPU backend to run it on.
  """
  problems = []
  config = checkpoint.config
  preprocessing = Preparer(config, tokenizer).describe()
  for line in manifest_lib.differences(
    checkpoint.manifest["preprocessing"], preprocessing
  ):
    problems.append(f"preprocessing.{line}.")
  stored = checkpoint.self_check()
  wanted = checkpoint.manifest["self_check_of"]
  if stored is None or wanted != checkpoint.source:
    return problems, False
  try:
    check = SelfCheck(config, tokenizer)
    problems += check.problems(checkpoint.params, stored)
  except (KeyError, TypeError, ValueError) as e:
    problems.append(f"self-check cannot run: {str(e).splitlines()[0][:200]}.")
  with on_cpu() as exact:
    return problems, not exact


def self_check(
  checkpoint: restore.Checkpoint,
  tokenizer: Tokenizer,
  *,
  strict: bool,
  otherwise: str,
) -> list[str]:
  """The problems that `verify` finds, one line each.

  Args:
    checkpoint: with its parameters.
    tokenizer: of the checkpoint.
    strict: whether problems beyond numeric drift are an error.
    otherwise: end of that error, naming what the user can do.

  Raises:
    CheckpointError: if the outputs differ and `strict`.
  """
  problems, drift = verify(checkpoint, tokenizer)
  if problems and strict and not drift:
    raise CheckpointError(
      f"{checkpoint.folder}: {manifest_lib.summarise(problems)} The code or "
      f"its settings changed what the parameters compute; {otherwise}."
    )
  return problems
