"""Gain in retrieval from each added modality, over several seeds.

    python -m mico_jax.benchmarks.modality_gain runs/seed0 runs/seed1 runs/seed2

Every checkpoint embeds the same scenes of OmniWorld's test split as video, as
video + audio, and as video + audio + depth; the queries are always the same
omni captions. Two views are compared by a paired bootstrap that resamples
scenes and seeds. The ceilings of R@1 follow from the scene graphs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.config import ConfigError
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.evaluation import metrics
from mico_jax.evaluation.features import Embedder
from mico_jax.inference.omni_model import OmniModel, load
from mico_jax.run.monitor.progress import say
from mico_jax.world import ceilings

KIND = "omni"  # captions that state what is seen, heard and measured


def hits(
  model: OmniModel, views: Sequence[str], *, size: int
) -> tuple[dict[str, Float[np.ndarray, " N"]], dict[str, float]]:
  """Hits of each text at rank 1, and the ceiling of their share.

  Args:
    model: from `mico_jax.load`.
    views: context letters, each with a head of the model.
    size: number of scenes, whose captions all differ.

  Returns:
    {letters: 1 or 0 per scene} and {letters: ceiling of R@1}.
  """
  config = model.config
  name = config.evaluation.source
  source = OmniWorldSource(name, config.data.sources[name], config)
  indices = source.world.gallery(size, kind=KIND)
  embedder = Embedder(model.model, model.params, config, model.tokenizer)
  gallery = embedder.embed_gallery(name, views, source=source, indices=indices)
  scenes = [source.world.scene(i) for i in indices]
  texts = [
    source.world.language(scene, i).captions[KIND][0]
    for scene, i in zip(scenes, indices, strict=True)
  ]
  queries = embedder.embed_texts(texts, KIND)
  positives = np.eye(len(texts), dtype=bool)
  recalls = {
    view: metrics.recall_at(
      metrics.ranks(queries @ gallery.embeddings[view].T, positives), 1
    )
    for view in views
  }
  return recalls, {view: ceilings(scenes, view, KIND) for view in views}


def gain(
  checkpoints: Sequence[str], views: Sequence[str], *, size: int = 1000
) -> dict[str, Any]:
  """Mean R@1 of each view, and the gains between consecutive views.

  Args:
    checkpoints: workdirs or step folders of one config, different seeds.
    views: context letters, each adding a modality to the one before.
    size: number of scenes.

  Raises:
    ConfigError: for fewer than two views.
  """
  if len(views) < 2:
    raise ConfigError(f"{views=}: give at least two, such as v va vad.")
  values: dict[str, list[np.ndarray]] = {view: [] for view in views}
  best: dict[str, float] = {}
  for path in checkpoints:
    recalls, best = hits(load(path, check="fast"), views, size=size)
    say(f"{path}: " + ", ".join(f"{v} {recalls[v].mean():.3f}" for v in views))
    for view in views:
      values[view].append(recalls[view])
  rows = {view: np.stack(parts) for view, parts in values.items()}
  steps = []
  for a, b in itertools.pairwise(views):
    difference = metrics.paired_bootstrap(rows[a], rows[b])
    steps.append(
      {
        "from": a,
        "to": b,
        "gain": difference.mean,
        "interval": list(difference.interval),
        "p_value": difference.p_value,
      }
    )
  return {
    "size": size,
    "checkpoints": list(checkpoints),
    "recall_at_1": {v: rows[v].mean(axis=1).tolist() for v in views},
    "ceiling": best,
    "gains": steps,
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table, or JSON."""
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.benchmarks.modality_gain",
    description="What each added modality gains in text -> scene R@1.",
  )
  parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
  parser.add_argument("--views", nargs="+", default=["v", "va", "vad"])
  parser.add_argument("--size", type=int, default=1000, help="scenes")
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args(argv)
  result = gain(args.checkpoints, args.views, size=args.size)
  if args.json:
    print(json.dumps(result, indent=2))
    return
  for view in args.views:
    each = ", ".join(f"{x:.3f}" for x in result["recall_at_1"][view])
    print(f"t->{view:4} R@1 {each}   ceiling {result['ceiling'][view]:.3f}")
  for step in result["gains"]:
    low, high = step["interval"]
    print(
      f"{step['from']} -> {step['to']}: {step['gain']:+.3f} "
      f"({low:+.3f} .. {high:+.3f}), p = {step['p_value']:.4f}"
    )


if __name__ == "__main__":
  main()
