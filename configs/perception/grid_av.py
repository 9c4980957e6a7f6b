"""Talking faces: video + sound + exact transcript (GRID sentences).

    mico-jax pretrain --config perception/grid_av:PATH/grid_av/manifest.jsonl

Three seconds of sound are five slices of 64 frames of 10 ms. With 400 clips to
learn from, faces are remembered sooner than words are heard: sound is
augmented, and half of the samples come without their video. Behind a comma
"validation": settings are chosen on a fifth of the training clips.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

MODEL = c.ModelConfig(
  vision=c.VisionConfig(
    image_size=64,
    patch_size=16,
    width=96,
    depth=4,
    num_heads=3,
    mlp_dim=384,
  ),
  text=c.TextConfig(
    vocab_size=0,
    width=96,
    depth=2,
    num_heads=3,
    mlp_dim=384,
    max_positions=32,
    dropout=0.0,
  ),
  embed_dim=96,
  scan=False,
  heads=("t", "v", "a", "va"),
  frame_table={"video": 1, "audio": 5},
)


def get_config(
  argument: str = "grid_av/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of grid_av.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  sources = small_sets.sources(
    argument,
    captions={"vision": "caption", "audio": "caption", "omni": "caption"},
    by="",
  )
  config = c.Config(
    name="grid_av",
    model=MODEL,
    data=c.DataConfig(
      sources=sources,
      inputs={
        "video": c.InputConfig(frames=1, mode="shift", dropout=0.5),
        "audio": c.InputConfig(frames=5, mode="spec_augment"),
      },
      cache_mib=1024,
      tokenizer=c.TokenizerConfig(
        kind="sentencepiece", max_length={"default": 14}
      ),
    ),
    tasks={
      "speech": c.TaskConfig(
        sources={"train": 1},
        batch_size=64,
        objectives={
          "contrastive": ("ta", "tva"),
          # Writing the words teaches to hear them.
          "captioning": ("ta",),
        },
        texts={"ta": {"omni": 1.0}},  # the same sentence: encoded once
      )
    },
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(label_smoothing=0.0)
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=2e-3,
      schedule="cosine",
      warmup=0.05,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(steps=2050, log_every=20, checkpoint_every=1025),
    evaluation=c.EvaluationConfig(
      source="test", size=0, suite="retrieval", groups=("a", "va")
    ),
  )
  return c.to_config_dict(config)
