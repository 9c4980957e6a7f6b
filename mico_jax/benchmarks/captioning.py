"""Writing captions: this package and the `generate` of transformers.

    python -m mico_jax.benchmarks.captioning

Both hold one BERT decoder with the same random weights, describe the same
random contexts by beam search, and must write the same tokens: the run fails
where they do not. Forms:

- `next_token`: the state of a token predicts the next one. The peer is
  `BertLMHeadModel` as it comes, with its cache of keys and values.
- `masked`: a [MASK] behind the chosen tokens is predicted, as MiCo writes. The
  peer appends it to what it has written and reads all anew, as the official
  code does.

A call projects the contexts, then writes. Random weights hardly ever end a
text, so each has its full length. Sides take turns; ratios are of turns. The
length penalty is 0, under which both libraries score alike (later versions of
transformers do not count the prompt). Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mico_jax import config as c
from mico_jax.benchmarks import timing, torch_peers
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.interop.exporting import transformers_text
from mico_jax.layers.stack import split_layers
from mico_jax.models import TEXT_ENCODERS, Context, MiCo, build
from mico_jax.models.bert import Bert
from mico_jax.models.decoding import generate

INFO = TokenizerInfo(
  pad=0, cls=101, sep=102, mask=103, vocab_size=1000, random_range=(104, 1000)
)
# Sizes of the text tower, and the tokens of its context.
SIZES: dict[str, tuple[dict[str, int], int]] = {
  "demo": (
    {
      "vocab_size": 512,
      "width": 96,
      "depth": 2,
      "num_heads": 3,
      "mlp_dim": 384,
    },
    68,  # a clip of four frames
  ),
  "base": (
    {
      "vocab_size": 30522,
      "width": 768,
      "depth": 12,
      "num_heads": 12,
      "mlp_dim": 3072,
    },
    257,  # a picture
  ),
}
FORMS = ("next_token", "masked")
_NEXT = "bert_next_token"


class NextTokenBert(Bert):
  """A BERT whose tokens predict the next ones."""

  next_token: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is written.

  Attributes:
    size: key of `SIZES`.
    form: of `FORMS`.
    batch: contexts of a call.
    beams: of each.
    tokens: of a text.
  """

  size: str
  form: str
  batch: int
  beams: int = 3
  tokens: int = 30


def _parts(setting: Setting, seed: int = 0) -> tuple[c.Config, MiCo, Any, Any]:
  """Config, model, parameters and contexts [B, S, W]."""
  text, length = SIZES[setting.size]
  TEXT_ENCODERS.setdefault(_NEXT, NextTokenBert)
  encoder = _NEXT if setting.form == "next_token" else "bert"
  vision = c.VisionConfig(
    image_size=16, patch_size=8, width=64, depth=1, num_heads=1, mlp_dim=64
  )
  model_config = c.ModelConfig(
    vision=vision,
    text=c.TextConfig(encoder=encoder, max_positions=64, **text),
    embed_dim=8,
    heads=("t", "v"),
    frame_table={"video": 1},
    scan=False,
    remat="none",
  )
  model, rng = build(model_config), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda s: (0.1 * rng.standard_normal(s.shape)).astype(np.float32),
    model.abstract_params(),
  )
  shape = (setting.batch, length, text["width"])
  contexts = rng.standard_normal(shape).astype(np.float32)
  # Names of tensors are those of a BERT in both forms.
  text_config = dataclasses.replace(model_config.text, encoder="bert")
  config = c.Config(model=dataclasses.replace(model_config, text=text_config))
  return config, model, params, contexts


def ours(
  setting: Setting, model: MiCo, params: Any, contexts: Float[Any, "B S W"]
) -> Callable[[], Any]:
  """A call that writes by this package and returns ids [B, L]."""
  options = {
    "tokens": INFO,
    "max_new_tokens": setting.tokens,
    "num_beams": setting.beams,
    "length_penalty": 0.0,
  }

  def write(params: Any, values: jax.Array) -> jax.Array:
    context = model.project_context(params, Context(values))
    return generate(model, params, context, **options).sequences[:, 0]

  run = jax.jit(write)
  # Parameters as in `mico_jax.load` on a CPU.
  ready = jax.tree.map(jnp.asarray, split_layers(params))
  values = jnp.asarray(contexts)
  return timing.waiting(run, ready, values)


def theirs(
  setting: Setting,
  config: c.Config,
  params: Any,
  contexts: Float[Any, "B S W"],
) -> Callable[[], Any]:
  """A call that writes by transformers and returns ids [B, L]."""
  import torch
  from transformers import (
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    EncoderDecoderCache,
  )

  class Masked(BertLMHeadModel):
    """Predicts a [MASK] behind what is written, and reads all anew."""

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any):
      mask = torch.full_like(input_ids[:, :1], INFO.mask)
      return {
        "input_ids": torch.cat([input_ids, mask], dim=1),
        "encoder_hidden_states": kwargs["encoder_hidden_states"],
        "use_cache": False,
      }

  described = transformers_text.model_config(config, INFO.pad, decoder=True)
  kind = Masked if setting.form == "masked" else BertLMHeadModel
  with transformers_text.quiet():
    model = kind(BertConfig(**{**described, "bos_token_id": INFO.cls})).eval()
    tensors = transformers_text.items(params, config, decoder=True)
    state = {t.name: torch.from_numpy(np.array(t.read())) for t in tensors}
    missing, unexpected = model.load_state_dict(state, strict=False)
  tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
  left = [n for n in missing if n not in tied and "position_ids" not in n]
  if left or unexpected:
    raise ValueError(f"tensors that do not fit: {left} {unexpected}.")
  model.tie_weights()
  values = torch.from_numpy(contexts)
  start = torch.full((setting.batch, 1), INFO.cls)

  def call() -> Any:
    cache: dict[str, Any] = {"use_cache": False}
    if setting.form == "next_token":
      # What `generate` makes itself cannot hold the keys of a context.
      both = EncoderDecoderCache(DynamicCache(), DynamicCache())
      cache = {"use_cache": True, "past_key_values": both}
    with torch.inference_mode():
      return model.generate(
        start,
        encoder_hidden_states=values,
        num_beams=setting.beams,
        max_new_tokens=setting.tokens,
        length_penalty=0.0,
        do_sample=False,
        **cache,
        eos_token_id=INFO.sep,
        pad_token_id=INFO.pad,
      )

  return call


def check_equal(a: Int[Any, "B L"], b: Int[Any, "B M"]) -> int:
  """Number of tokens that both sides wrote, padding left out.

  Raises:
    ValueError: if they are not the same.
  """
  a, b = np.asarray(a), np.asarray(b)
  length = max(a.shape[1], b.shape[1])
  a, b = (
    np.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=INFO.pad)
    for x in (a, b)
  )
  if (a != b).any():
    row = int(np.flatnonzero((a != b).any(axis=1))[0])
    raise ValueError(
      f"text {row} differs: ours {a[row].tolist()}, theirs {b[row].tolist()}."
    )
  return int((a[:, 1:] != INFO.pad).sum())


def measure(setting: Setting, turns: int) -> dict[str, Any]:
  """Times both sides.

  Raises:
    ValueError: if they write different tokens.
  """
  config, model, params, contexts = _parts(setting)
  sides = {
    "ours": ours(setting, model, params, contexts),
    "transformers": theirs(setting, config, params, contexts),
  }
  first, second = (side() for side in sides.values())
  tokens = check_equal(first, second)
  times = timing.alternate(sides, turns=turns)
  ratios = sorted(
    b / a
    for a, b in zip(
      times["ours"].turns, times["transformers"].turns, strict=True
    )
  )
  return {
    **dataclasses.asdict(setting),
    **{
      f"{name}_tokens_per_second": round(tokens / t.median, 1)
      for name, t in times.items()
    },
    "ratio": round(times["ours"].ratio(times["transformers"]), 2),
    "ratios": [round(ratios[0], 2), round(ratios[-1], 2)],
    "spread": {name: round(t.spread, 3) for name, t in times.items()},
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one JSON object per size, form and batch."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--sizes", nargs="+", default=list(SIZES))
  parser.add_argument("--forms", nargs="+", default=list(FORMS))
  parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
  parser.add_argument("--beams", type=int, default=3)
  parser.add_argument("--tokens", type=int, default=30)
  parser.add_argument("--turns", type=int, default=7)
  args = parser.parse_args(argv)
  torch_peers.use_threads()
  for size in args.sizes:
    for form in args.forms:
      for batch in args.batches:
        setting = Setting(size, form, batch, args.beams, args.tokens)
        print(json.dumps(measure(setting, args.turns)), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
