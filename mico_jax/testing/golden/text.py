"""Case text_bert: masks, cross-attention, LM head, loss and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mico_jax.config import ModelConfig
from mico_jax.interop.names import mico as official
from mico_jax.kernels.attention import reference
from mico_jax.layers.attention import PackedProjection
from mico_jax.models import Context, MiCo, build
from mico_jax.models.bert import TextEmbed
from mico_jax.testing.golden.case import LOSS_LIMIT, Check, Folder


def text_model(
  folder: Folder, settings: Mapping[str, Any]
) -> tuple[MiCo, dict[str, Any]]:
  """The text tower of a folder that holds only that.

  Args:
    folder: with weights under the original's names.
    settings: the BERT part of its config.
  """
  prefix = folder.config.get("key_prefix", official.BERT)
  weights = {
    official.BERT + name.removeprefix(prefix): value
    for name, value in folder.weights.items()
  }
  config = official.config_from_official(
    weights, text_heads=settings["num_attention_heads"]
  )
  text = dataclasses.replace(
    config.text,
    norm_eps=settings["layer_norm_eps"],
    pad_id=settings["pad_token_id"],
    dropout=0.0,
  )
  config = dataclasses.replace(config, text=text, matmul_precision="highest")
  params = official.from_official(weights, config, parts=["text"])
  return build(config), jax.tree.map(jnp.asarray, params)


def masked_lm_loss(
  logits: Float[Array, "B L V"], labels: Int[Array, "B L"]
) -> Float[Array, ""]:
  """Mean cross-entropy over positions whose label is not -100."""
  logprobs = jax.nn.log_softmax(logits, axis=-1)
  valid = labels >= 0
  index = jnp.where(valid, labels, 0)[..., None]
  picked = jnp.take_along_axis(logprobs, index, axis=-1)[..., 0]
  count = jnp.sum(valid).astype(picked.dtype)
  return -jnp.sum(jnp.where(valid, picked, 0.0)) / count


def _shallow(
  model: MiCo, params: Mapping[str, Any], depth: int
) -> tuple[MiCo, dict[str, Any]]:
  """The model cut after `depth` blocks."""
  config = dataclasses.replace(
    model.config, text=dataclasses.replace(model.config.text, depth=depth)
  )
  text = params["text"]
  blocks = jax.tree.map(lambda x: x[:depth], text["blocks"])
  return build(config), {"text": {**text, "blocks": blocks}}


def _masks(folder: Folder) -> dict[str, dict[str, Any]]:
  """Tag of a mask -> our words for it."""
  inputs = folder.inputs
  mask = jnp.asarray(inputs["attention_mask_2d"]).astype(bool)
  question = folder.config["question_len_in_partcausal"]
  # The last row of a causal mask says which tokens are no padding: question
  # and answer are padded apart.
  last = inputs["attention_mask_3d_partcausal"][:, -1]
  last = jnp.asarray(last).astype(bool)
  return {
    "nomask": {"mask": jnp.ones_like(mask)},
    "mask2d": {"mask": mask},
    "mask3d_causal": {"mask": mask, "attention": "causal"},
    "mask3d_partcausal": {
      "mask": last,
      "attention": "prefix_causal",
      "prefix_length": question,
    },
  }


def text_bert(folder: Folder) -> Iterator[Check]:
  """Every stored mask with and without condition; loss; gradients."""
  model, params = text_model(folder, folder.config["bert_config"])
  inputs, outputs = folder.inputs, folder.outputs
  masks = _masks(folder)
  condition = jnp.asarray(inputs["encoder_hidden_states"])

  def run(
    params: Any,
    ids: Int[np.ndarray, "B L"],
    options: Mapping[str, Any],
    cross: bool,
  ) -> tuple[Float[Array, "B L W"], Float[Array, "B L V"]]:
    context = (
      model.project_context(params, Context(condition)) if cross else None
    )
    hidden = model.text(params, jnp.asarray(ids), context=context, **options)
    return hidden, model.lm_logits(params, hidden)

  tags = sorted({n.rsplit(".", 1)[0] for n in outputs if "." in n})
  for tag in tags:
    name = tag.removeprefix("lm_loss_").removesuffix("_cross")
    if name not in masks:
      continue
    labelled = tag.startswith("lm_loss_")
    ids = inputs["masked_input_ids" if labelled else "input_ids"]
    cross = tag.endswith("_cross")
    hidden, logits = run(params, ids, masks[name], cross)
    if f"{tag}.sequence_output" in outputs:
      yield Check(
        f"{tag}.sequence_output", hidden, outputs[f"{tag}.sequence_output"]
      )
    if f"{tag}.logits" in outputs:
      yield Check(f"{tag}.logits", logits, outputs[f"{tag}.logits"])
    if f"{tag}.loss" in outputs:
      loss = masked_lm_loss(logits, jnp.asarray(inputs["labels"]))
      yield Check(f"{tag}.loss", loss, outputs[f"{tag}.loss"], LOSS_LIMIT)
  yield from _inner(folder, model, params)
  if folder.has("grads"):
    tag = folder.config["grads_are_of"].removesuffix(".loss")
    name = tag.removeprefix("lm_loss_").removesuffix("_cross")

    def loss_of(params: Any) -> Float[Array, ""]:
      ids = inputs["masked_input_ids"]
      logits = run(params, ids, masks[name], tag.endswith("_cross"))[1]
      return masked_lm_loss(logits, jnp.asarray(inputs["labels"]))

    yield from gradients(
      "grads", jax.grad(loss_of)(params), model.config, folder, ["text"]
    )


def gradients(
  file: str,
  grads: Any,
  config: ModelConfig,
  folder: Folder,
  parts: list[str] | None = None,
) -> Iterator[Check]:
  """Checks gradients under their official names against a stored file."""
  got = official.to_official(grads, config, parts=parts, copies=False)
  for name, want in folder.tensors(file).items():
    yield Check(f"{file} {name}", got[name], want, LOSS_LIMIT)


def _inner(folder: Folder, model: MiCo, params: Any) -> Iterator[Check]:
  """Embedding, layers and attention weights of the plain 2D mask."""
  inputs, outputs, config = folder.inputs, folder.outputs, model.config
  ids = jnp.asarray(inputs["input_ids"])
  mask = inputs["attention_mask_2d"].astype(bool)
  embed = TextEmbed(config.text)
  first = embed.apply(
    {"params": params["text"]["embed"]},
    ids,
    position_ids=jnp.arange(ids.shape[1]),
  )
  for depth in range(config.text.depth + 1):
    name = f"mask2d.hidden{depth}"
    if name not in outputs:
      continue
    hidden = first
    if depth:
      cut, shallow = _shallow(model, params, depth)
      hidden = cut.text(shallow, ids, mask=jnp.asarray(mask))
    yield Check(name, np.asarray(hidden), outputs[name])
  name = "mask2d.attention_probs_layer0"
  if name in outputs:
    qkv = jax.tree.map(lambda x: x[0], params["text"]["blocks"]["attn"]["qkv"])
    project = PackedProjection(3, config.text.num_heads)
    packed: Any = project.apply({"params": qkv}, jnp.asarray(first))
    q, k, _ = project.split_heads(packed)
    scores = jnp.einsum("blnh,bsnh->bnls", q, k) * q.shape[-1] ** -0.5
    probs = reference.masked_softmax(
      scores, jnp.asarray(mask)[:, None, None], config.masked_rows
    )
    yield Check(name, probs, outputs[name])
