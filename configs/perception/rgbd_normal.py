"""Pictures, depth and normals of one room, aligned without any caption.

    mico-jax pretrain --config perception/rgbd_normal:PATH/rgbd_normal/manifest.jsonl

The set holds 234 frames of one room in `train` and 47 in `test`, and no texts
at all: "i:d" contrasts images with depth maps, "i:n" with normals. Behind a
comma "validation": settings are chosen on the last 34 frames of `train`,
trained on the first 190, with a gap between. 7-Scenes: Shotton et al., CVPR
2013.
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
  heads=("t", "v", "d", "n"),
  frame_table={"video": 1, "depth": 1, "normal": 1},
)
STEP = 3  # every third frame of the recording is in the set


def get_config(
  argument: str = "rgbd_normal/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of rgbd_normal.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  manifest, validation = small_sets.parse(argument)

  def source(split: str, frames: range | None = None) -> c.SourceConfig:
    return c.SourceConfig(
      kind="manifest",
      path=manifest,
      split=split,
      fields={"image": "rgb"},
      depth_unit="millimetre",
      where={} if frames is None else {"frame": tuple(frames)},
    )

  sources = {"train": source("train"), "test": source("test")}
  if validation:
    sources = {
      "train": source("train", range(0, 570, STEP)),
      "test": source("train", range(600, 702, STEP)),
    }
  config = c.Config(
    name="rgbd_normal",
    model=MODEL,
    data=c.DataConfig(
      sources=sources,
      inputs={
        "image": c.InputConfig(mode="plain"),
        "depth": c.InputConfig(mode="metric_standardised"),
        "normal": c.InputConfig(mode="plain"),
      },
      cache_mib=256,
      tokenizer=c.TokenizerConfig(kind="omniworld", max_length={"default": 16}),
    ),
    tasks={
      "pairs": c.TaskConfig(
        sources={"train": 1},
        batch_size=64,
        objectives={"contrastive": ("i:d", "i:n")},
        # The same part of all three: frames are too few to learn by heart.
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
