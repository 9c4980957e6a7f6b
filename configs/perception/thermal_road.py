"""Pictures of roads and what a thermal camera sees of them (RoadScene).

    mico-jax pretrain --config perception/thermal_road:PATH/thermal_road/manifest.jsonl

The set holds 140 pairs in `train` and 38 in `test`, and no texts at all: "i:h"
contrasts pictures with thermal ones, which are pictures of a camera without a
scale. Behind a comma "validation": settings are chosen on a fifth of the
training pairs. Xu et al., AAAI 2020.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

MODEL = c.ModelConfig(
  vision=small_sets.convnet(48, 32, (2, 2)),
  # No text is read; the tower is there, and small.
  text=c.TextConfig(
    vocab_size=0, width=32, depth=1, num_heads=1, mlp_dim=32, max_positions=16
  ),
  embed_dim=96,
  scan=False,
  heads=("t", "v", "h"),
  frame_table={"video": 1, "thermal": 1},
)


def get_config(
  argument: str = "thermal_road/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of thermal_road.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  sources = small_sets.sources(
    argument,
    captions={},
    by="",
    stated={"fields": {"image": "rgb"}, "units": {"thermal": "picture"}},
  )
  config = c.Config(
    name="thermal_road",
    model=MODEL,
    data=c.DataConfig(
      sources=sources,
      inputs={
        "image": c.InputConfig(mode="plain"),
        "thermal": c.InputConfig(mode="relative"),
      },
      cache_mib=256,
      tokenizer=c.TokenizerConfig(kind="omniworld", max_length={"default": 16}),
    ),
    tasks={
      "thermal_road": c.TaskConfig(
        sources={"train": 1},
        batch_size=64,
        objectives={"contrastive": ("i:h",)},
        # The same part of both: pairs are too few to learn by heart.
        augment={
          "random_resized_crop": {"scale": (0.3, 1.0)},
          "flip": {},
          "color_jitter": {},
        },
      )
    },
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(label_smoothing=0.0)
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=2e-3,
      schedule="cosine",
      warmup=0.1,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(steps=600, log_every=20, checkpoint_every=600),
    evaluation=c.EvaluationConfig(source="test", size=0, suite="retrieval"),
  )
  return c.to_config_dict(config)
