"""Environmental sounds with one fixed caption per class (ESC-10).

    mico-jax pretrain --config esc10:PATH/esc10/manifest.jsonl

Classification through captions: a clip takes the class whose caption is
nearest. With 240 clips to learn from, augmentation matters most.
"""

import ml_collections

from mico_jax import config as c

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
  heads=("t", "a"),
  frame_table={"audio": 4},
)


def get_config(
  manifest: str = "esc10/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of esc10.

  Args:
    manifest: path of manifest.jsonl.
  """
  source = lambda split: c.SourceConfig(
    kind="manifest", path=manifest, split=split, captions={"audio": "caption"}
  )
  config = c.Config(
    name="esc10",
    model=MODEL,
    data=c.DataConfig(
      sources={"train": source("train"), "test": source("test")},
      inputs={"audio": c.InputConfig(frames=4, mode="speed_augment")},
      # Five seconds in four slices of 64 frames.
      audio=c.AudioConfig(hop_ms=20.0, window_ms=40.0),
      cache_mib=256,
      tokenizer=c.TokenizerConfig(
        kind="sentencepiece", max_length={"default": 14}
      ),
    ),
    tasks={
      "sounds": c.TaskConfig(
        sources={"train": 1},
        batch_size=48,
        objectives={"contrastive": ("ta",)},
      )
    },
    optimizer=c.OptimizerConfig(
      learning_rate=1e-3,
      schedule="cosine",
      warmup=0.05,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(
      steps=1200, patch_dropout=0.25, log_every=20, checkpoint_every=600
    ),
    evaluation=c.EvaluationConfig(
      source="test",
      size=0,
      suite="classification",
      groups=("a",),
      label="label",
    ),
  )
  return c.to_config_dict(config)
