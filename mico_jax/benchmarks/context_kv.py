"""FLOPs saved by projecting the keys and values of a context once per step.

`python -m mico_jax.benchmarks.context_kv` counts, by XLA's cost analysis of the
compiled program, the floating point operations of the text tower in a step with
matching (the positives, and two negatives per row) and captioning: forward and
backward, context projected once and gathered, against projected in every pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax.models import PRESETS, Context, ContextKV, MiCo, build


def text_step(
  model: MiCo,
  params: Any,
  ids: Int[Array, "B L"],
  values: Float[Array, "B S W"],
  negatives: Int[Array, " B"],
  *,
  once: bool,
) -> Float[Array, ""]:
  """A scalar that depends on all text passes of a step.

  Args:
    model: the model.
    params: of its text tower and matching head.
    ids: token ids.
    values: context tokens.
    negatives: row of the negative of each row.
    once: whether to project the context once and gather it, else in every pass.
  """

  def kv(rows: jax.Array | None) -> ContextKV:
    if once:
      return projected if rows is None else projected.take(rows)
    chosen = values if rows is None else jnp.take(values, rows, axis=0)
    return model.project_context(params, Context(chosen))

  projected = model.project_context(params, Context(values))
  rows = jnp.arange(ids.shape[0])
  positive = model.text(params, ids, context=kv(None))
  others = jnp.concatenate([ids, jnp.take(ids, negatives, axis=0)])
  negative = model.text(
    params,
    others,
    context=kv(jnp.concatenate([negatives, rows])),
  )
  caption = model.text(params, ids, attention="causal", context=kv(None))
  return (
    jnp.sum(model.matching_logits(params, positive, ids))
    + jnp.sum(model.matching_logits(params, negative, others))
    + jnp.sum(caption)
  )


def measure(
  preset: str, *, depth: int, batch: int, length: int, context: int
) -> dict[str, Any]:
  """FLOPs of the text passes of one step, both ways.

  Args:
    preset: name of the model config.
    depth: layers of the text tower, unrolled, since the cost analysis counts
      the body of a loop once.
    batch: rows.
    length: text tokens.
    context: context tokens.
  """
  config = PRESETS[preset]
  text = dataclasses.replace(config.text, depth=depth, dropout=0.0)
  model = build(dataclasses.replace(config, text=text, scan=False))
  params = model.abstract_params()
  params = {name: params[name] for name in ("text", "matching_head")}
  width = config.text.width
  arguments = (
    params,
    jax.ShapeDtypeStruct((batch, length), jnp.int32),
    jax.ShapeDtypeStruct((batch, context, width), jnp.float32),
    jax.ShapeDtypeStruct((batch,), jnp.int32),
  )
  flops = {}
  for once in (True, False):
    step = functools.partial(text_step, model, once=once)
    grad = jax.jit(jax.value_and_grad(step, argnums=(0, 2)))
    cost = grad.lower(*arguments).compile().cost_analysis()
    flops["once" if once else "every_pass"] = float((cost or {})["flops"])
  saved = 1.0 - flops["once"] / flops["every_pass"]
  return {
    "preset": preset,
    "text_layers": depth,
    "batch": batch,
    "text_tokens": length,
    "context_tokens": context,
    "flops": flops,
    "saved_fraction": saved,
    "platform": jax.default_backend(),
    "jax": jax.__version__,
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the measurement as JSON."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--preset", default="mico_b16")
  parser.add_argument("--depth", type=int, default=2, help="text layers")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=40, help="text tokens")
  parser.add_argument("--context", type=int, default=394, help="2 x 197: va")
  print(json.dumps(measure(**vars(parser.parse_args(argv))), indent=2))


if __name__ == "__main__":
  main()
