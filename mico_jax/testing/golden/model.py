"""Case mico_full: encoder, features, contexts and heads of the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mico_jax.interop.names import mico as official
from mico_jax.models import Context, MiCo, build
from mico_jax.testing.golden.case import Check, Folder

# Letter -> (our modality, word in output names, word in input names).
WORDS = {
  "v": ("video", "vision", "vision_pixels"),
  "a": ("audio", "audio", "audio_spectrograms"),
  "d": ("depth", "depth", "depth_pixels"),
}
CONTEXTS = ("va", "vs", "vas", "id")


def whole_model(folder: Folder) -> tuple[MiCo, dict[str, Any]]:
  """The model of a folder that holds a whole MiCo, with the quirks on."""
  settings = folder.config["model_cfg"]
  sizes, bert = settings["tiny_vision"], folder.config["bert_config_full"]
  config = official.config_from_official(
    folder.weights,
    vision_heads=sizes["width"] // sizes["head_width"],
    text_heads=bert["num_attention_heads"],
  )
  text = dataclasses.replace(
    config.text,
    norm_eps=bert["layer_norm_eps"],
    pad_id=bert["pad_token_id"],
    dropout=bert["hidden_dropout_prob"],
  )
  vision = dataclasses.replace(
    config.vision, drop_path_rate=sizes.get("drop_path_rate", 0.0)
  )
  frame_table = config.frame_table
  if settings.get("frame_embedding_type", "adaptive") == "none":
    frame_table = {**frame_table, "video": 0}
  config = dataclasses.replace(
    config,
    text=text,
    vision=vision,
    frame_table=frame_table,
    pool_frames=bool(settings.get("pool_video", False)),
    matmul_precision="highest",
  )
  params = official.from_official(folder.weights, config)
  return build(config), jax.tree.map(jnp.asarray, params)


def to_frames(
  value: Float[np.ndarray, "B T ..."],
) -> Float[Array, "B T Y X 3"]:
  """Stored pixels [B T 3 Y X] or slices [B T Y X] as frames."""
  x = jnp.asarray(value)
  if x.ndim == 4:  # slices of one channel
    return jnp.repeat(x[..., None], 3, axis=-1)
  return x.transpose(0, 1, 3, 4, 2)


def _with(model: MiCo, **changes: Any) -> MiCo:
  return build(dataclasses.replace(model.config, **changes))


@dataclasses.dataclass
class _State:
  """Values of earlier checks that later ones need."""

  tokens: dict[str, Float[Array, "B T N D"]]
  pooled: dict[str, Float[Array, "B D"]]
  text: Float[Array, "B L W"]
  subtitle: Float[Array, "B S W"]


def mico_full(folder: Folder) -> Iterator[Check]:
  """Every stored output of the whole model."""
  model, params = whole_model(folder)
  outputs = folder.outputs
  inputs = {k: jnp.asarray(v) for k, v in folder.inputs.items()}
  text, subtitle = (
    model.text(params, inputs[ids], mask=inputs[mask].astype(bool))
    for ids, mask in (
      ("input_ids", "attention_mask"),
      ("subtitle_ids", "subtitle_mask"),
    )
  )
  state = _State({}, {}, text, subtitle)
  for letter in WORDS:
    yield from _modality(folder, model, params, letter, state)
  logits = model.lm_logits(params, text)
  pooled = {
    "t": model.pool_text(text, inputs["input_ids"]),
    "s": model.pool_text(subtitle, inputs["subtitle_ids"]),
  }
  got = {
    "text_output": text,
    "text_logits": logits,
    "feat_t": model.embed(params, "t", pooled),
    "subtitle_output": subtitle,
    "feat_s": model.embed(params, "s", pooled),
  }
  pooled |= state.pooled
  pooled["i"] = pooled["v"]
  for name in CONTEXTS:
    got[f"feat_{name}"] = model.embed(params, name, pooled)
  got["sim_t2v"] = got["feat_t"] @ model.embed(params, "v", pooled).T
  for name, value in got.items():
    if name in outputs:
      yield Check(name, value, outputs[name])
  yield from _contexts(folder, model, params, state)


def _modality(
  folder: Folder, model: MiCo, params: Any, letter: str, state: _State
) -> Iterator[Check]:
  """Tokens, pooled features and contexts of one modality, by frame count."""
  key, word, source = WORDS[letter]
  outputs, config = folder.outputs, model.config
  variants: dict[str, MiCo] = {
    f"cond_{letter}.pool_False": _with(model, pool_frames=False),
    f"cond_{letter}.pool_True": _with(model, pool_frames=True),
    f"cond_{letter}.frame_embedding_none": _with(
      model,
      pool_frames=False,
      frame_table={**config.frame_table, key: 0},
    ),
  }
  names = [n for n in folder.inputs if n.startswith(f"{source}.")]
  joint = folder.config["joint_features_use"][word]
  for name in names:
    count = name.rsplit(".", 1)[1]
    frames = to_frames(folder.inputs[name])
    tokens = model.encode(params, key, frames)
    pooled = model.pool(params, key, tokens)
    if count == f"n{joint}":
      state.tokens[letter], state.pooled[letter] = tokens, pooled
    got = {
      f"{word}_output.{count}": tokens,
      f"pooled_{letter}.{count}": pooled,
      f"feat_{letter}.{count}": model.embed(params, letter, {letter: pooled}),
    }
    for variant, other in variants.items():
      context = other.context(params, letter, {letter: tokens})
      got[f"{variant}.{count}"] = context.values
    for output, value in got.items():
      if output in outputs:
        yield Check(output, value, outputs[output])


def _contexts(
  folder: Folder, model: MiCo, params: Any, state: _State
) -> Iterator[Check]:
  """Joint contexts, and the matching head on each."""
  outputs = folder.outputs
  tokens: Mapping[str, jax.Array] = {
    **state.tokens,
    "i": state.tokens["v"],
    "s": state.subtitle,
  }
  contexts: dict[str, Context] = {
    "s": model.context(params, "s", tokens),
    "v": model.context(params, "v", tokens),
    "v_pool": _with(model, pool_frames=True).context(params, "v", tokens),
  }
  for name in CONTEXTS:
    contexts[name] = model.context(params, name, tokens)
  for name, context in contexts.items():
    if f"cond_{name}" in outputs:
      yield Check(f"cond_{name}", context.values, outputs[f"cond_{name}"])
  ids = jnp.asarray(folder.inputs["input_ids"])
  mask = jnp.asarray(folder.inputs["attention_mask"]).astype(bool)
  for name, context in contexts.items():
    if f"itm_logits.{name}" not in outputs:
      continue
    projected = model.project_context(params, context)
    hidden = model.text(params, ids, mask=mask, context=projected)
    logits = model.matching_logits(params, hidden, ids)
    for output, value in (
      ("itm_sequence_output", hidden),
      ("itm_logits", logits),
      ("itm_scores", jax.nn.softmax(logits, axis=-1)[:, 1]),
    ):
      if f"{output}.{name}" in outputs:
        yield Check(f"{output}.{name}", value, outputs[f"{output}.{name}"])
