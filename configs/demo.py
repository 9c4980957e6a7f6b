"""The main job in small: all modalities of OmniWorld on two CPU cores.

    mico-jax pretrain --config demo

Three tasks alternate: `align` contrasts video, image, audio, both of video and
audio, and these with depth, with vision, audio and omni captions; `fuse` adds
matching and captioning on the joint context of video and audio; `space` has
depth and normals, which are learned late, with their own captions.
"""

import ml_collections

from mico_jax import config as c

MODEL = c.ModelConfig(
  vision=c.VisionConfig(
    image_size=32, patch_size=8, width=96, depth=4, num_heads=3, mlp_dim=384
  ),
  text=c.TextConfig(
    vocab_size=512,
    width=96,
    depth=2,
    num_heads=3,
    mlp_dim=384,
    max_positions=64,
    dropout=0.0,
  ),
  embed_dim=96,
  scan=False,
  # Motion is a stated fact.
  frame_weights=True,
  frame_changes=("video",),
  heads=("t", "s", "v", "a", "d", "n", "va", "vad"),
  frame_table={"video": 2, "audio": 2, "depth": 1, "normal": 1},
)

TASKS = {
  "align": c.TaskConfig(
    steps=5,
    sources={"train": 1},
    batch_size=64,
    objectives={"contrastive": ("tv", "ti", "ta", "tva", "tvad")},
    # The same texts, so that they are encoded once.
    texts={
      "tv": {"vision": 0.5, "omni": 0.5},
      "ti": {"vision": 0.5, "omni": 0.5},
    },
  ),
  "fuse": c.TaskConfig(
    steps=3,
    sources={"train": 1},
    batch_size=64,
    objectives={
      "contrastive": ("tva",),
      "matching": ("tva",),
      "captioning": ("tva",),
    },
  ),
  "space": c.TaskConfig(
    steps=4,
    sources={"train": 1},
    batch_size=64,
    objectives={"contrastive": ("td", "tn")},
  ),
}


def get_config() -> ml_collections.ConfigDict:
  """The demo: about ten minutes on two CPU cores, under 4 GB."""
  world = lambda split, size, **more: c.SourceConfig(
    kind="omniworld", split=split, size=size, **more
  )
  config = c.Config(
    name="demo",
    model=MODEL,
    data=c.DataConfig(
      sources={
        "train": world(
          "train",
          1_000_000,
          # What other texts of a batch teach too little.
          negative_facts=("shape", "material", "place", "motion"),
        ),
        "test": world("test", 10_000),
      },
      inputs={
        "image": c.InputConfig(frames=1, mode="plain"),
        "video": c.InputConfig(frames=2, mode="plain"),
        "audio": c.InputConfig(frames=2, mode="plain"),
        "depth": c.InputConfig(frames=1),
        "normal": c.InputConfig(frames=1, mode="plain"),
      },
      audio=c.AudioConfig(hop_ms=16.0),
      tokenizer=c.TokenizerConfig(
        kind="omniworld",
        max_length={
          "default": 42,
          "omni": 42,
          "vision": 31,
          "audio": 25,
          "depth": 25,
          "normal": 22,
          "question": 12,
          "answer": 6,
        },
      ),
      num_negatives=1,
      num_threads=1,
      prefetch=16,
    ),
    tasks=TASKS,
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(
        label_smoothing=0.0, explicit_negatives=("tva", "tvad")
      ),
      # Mostly random negatives: mined ones alone are too hard to start with.
      matching=c.MatchingConfig(
        weight=1.0, floor=0.02, explicit_negatives=False
      ),
      captioning=c.CaptioningConfig(weight=1.0),
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=1e-3,
      schedule="cosine",
      warmup=0.05,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(steps=960, log_every=12, checkpoint_every=480),
    generation=c.GenerationConfig(3, length_penalty=0.6, max_new_tokens=41),
    evaluation=c.EvaluationConfig(
      suite="omniworld",
      source="test",
      size=256,
      groups=("v", "a", "i", "d", "n", "va", "vad"),
      captions=64,
      hard=128,
      rerank_by="both",
    ),
  )
  return c.to_config_dict(config)
