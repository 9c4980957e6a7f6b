"""Case generate: greedy and beam decoding, free and from a question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mico_jax.models import Context
from mico_jax.models.decoding import Generation, make_generator
from mico_jax.testing.golden.case import Check, Folder, Missing
from mico_jax.testing.golden.text import text_model


@dataclasses.dataclass(frozen=True)
class Special:
  """The special token ids of the folder."""

  pad: int
  cls: int
  sep: int
  mask: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """One stored run, as its tag says: `[nocond_][qa_]beam3_lp0.6[_ret3]`."""

  beams: int
  penalty: float
  returned: int
  question: bool
  condition: bool


def setting(tag: str) -> Setting | None:
  """Reads a tag; None if it is none of this form."""
  match = re.fullmatch(
    r"(nocond_)?(qa_)?(?:greedy|beam(\d+)_lp([\d.]+)(?:_ret(\d+))?)", tag
  )
  if match is None:
    return None
  nocond, question, beams, penalty, returned = match.groups()
  return Setting(
    int(beams or 1),
    float(penalty or 1.0),
    int(returned or 1),
    question is not None,
    nocond is None,
  )


def _trim(
  sequences: Int[np.ndarray, "N L"], width: int, pad: int
) -> Int[np.ndarray, "N _"]:
  """Cuts padding to the stored width; tokens beyond it stay, and differ."""
  if (sequences[:, width:] == pad).all():
    return sequences[:, :width]
  return sequences


def generate(folder: Folder) -> Iterator[Check | Missing]:
  """Every stored run: token ids, scores, and the logits of greedy steps."""
  settings = folder.config
  model, params = text_model(folder, settings["bert_config"])
  special = Special(
    settings["pad"], settings["bos"], settings["eos"], settings["mask"]
  )
  inputs = {k: jnp.asarray(v) for k, v in folder.inputs.items()}
  condition = inputs["encoder_hidden_states"]
  context = jax.jit(model.project_context)(params, Context(condition))
  for tag in sorted({_tag(name) for name in folder.outputs}):
    run = setting(tag)
    if run is None:
      for name in folder.outputs:
        if _tag(name) == tag:
          yield Missing(name, f"a reading of the tag {tag!r}")
      continue
    greedy = run.beams == 1
    name = "qa_max_new_tokens" if run.question else "max_new_tokens"
    decode = make_generator(
      model,
      tokens=special,
      max_new_tokens=settings[name],
      num_beams=run.beams,
      length_penalty=run.penalty,
      num_return=run.returned,
      batch_size=condition.shape[0],
      return_logits=greedy,
    )
    prompt = {}
    if run.question:
      prompt["prompt"] = inputs["qa.init_input_ids"]
      mask = inputs["qa.init_attention_mask"]
      prompt["prompt_mask"] = mask[:, -1].astype(bool)
    output = decode(params, context if run.condition else None, **prompt)
    yield from _checks(folder, tag, output, special)


def _tag(name: str) -> str:
  """The tag of an output; penalties hold a dot, the last part never does."""
  return name.rsplit(".", 1)[0]


def _checks(
  folder: Folder, tag: str, output: Generation, special: Special
) -> Iterator[Check]:
  outputs = folder.outputs
  sequences = np.asarray(output.sequences)
  sequences = sequences.reshape(-1, sequences.shape[-1])
  name = f"{tag}.sequences"
  if name in outputs:
    want = outputs[name]
    got = _trim(sequences, want.shape[1], special.pad)
    yield Check(name, got, want, 0.0)
  name = f"{tag}.sequences_scores"
  if name in outputs:
    yield Check(name, np.asarray(output.scores).reshape(-1), outputs[name])
  if output.step_logits is None:
    return
  logits = np.asarray(output.step_logits)[:, : int(output.steps)]
  start = sequences.shape[1] - output.step_logits.shape[1]
  derived: dict[str, Any] = {"step_logits": logits}
  chosen = sequences[:, start : start + logits.shape[1]]
  logprobs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
  picked = np.take_along_axis(logprobs, chosen[..., None], axis=-1)[..., 0]
  derived["token_logprobs"] = picked
  top = np.sort(logits, axis=-1)
  ended = np.cumsum(chosen == special.sep, axis=1) - (chosen == special.sep)
  margin = np.where(ended > 0, np.inf, top[..., -1] - top[..., -2])
  derived["min_margin"] = np.min(margin)
  for part, value in derived.items():
    name = f"{tag}.{part}"
    if name in outputs:
      yield Check(name, value, outputs[name])
