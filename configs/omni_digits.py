"""Spoken and handwritten digits: image + audio + text, paired by class.

    mico-jax pretrain --config omni_digits:PATH/omni_digits/manifest.jsonl

Evaluated on the test records with `pair` = 0: sound against picture (right
when the digit is the same), and both against their captions.
"""

import ml_collections

from mico_jax import config as c

MODEL = c.ModelConfig(
  vision=c.VisionConfig(
    image_size=32, patch_size=8, width=96, depth=4, num_heads=3, mlp_dim=384
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
  heads=("t", "v", "a"),
  frame_table={"video": 1, "audio": 2},
)

TASKS = {
  "digits": c.TaskConfig(
    sources={"train": 1},
    batch_size=64,
    objectives={"contrastive": ("ti", "ta")},
    # The omni caption is what a picture and a sound have in common.
    texts={
      "ti": {"vision": 0.5, "omni": 0.5},
      "ta": {"audio": 0.5, "omni": 0.5},
    },
  )
}


def get_config(
  manifest: str = "omni_digits/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of omni_digits.

  Args:
    manifest: path of manifest.jsonl.
  """
  source = lambda split, **where: c.SourceConfig(
    kind="manifest",
    path=manifest,
    root="..",  # the manifest names files of its sibling folders
    split=split,
    where=where,
    captions={
      "vision": "image_caption",
      "audio": "audio_caption",
      "omni": "caption",
    },
  )
  config = c.Config(
    name="omni_digits",
    model=MODEL,
    data=c.DataConfig(
      sources={"train": source("train"), "test": source("test", pair=0)},
      inputs={
        "image": c.InputConfig(frames=1, mode="shift"),
        "audio": c.InputConfig(frames=2, mode="spec_augment"),
      },
      cache_mib=256,
      tokenizer=c.TokenizerConfig(
        kind="sentencepiece", max_length={"default": 18}
      ),
    ),
    tasks=TASKS,
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(label_smoothing=0.0)
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=1e-3,
      schedule="cosine",
      warmup=0.05,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(steps=1800, log_every=20, checkpoint_every=500),
    evaluation=c.EvaluationConfig(
      source="test",
      size=0,
      suite="retrieval",
      groups=("i", "a"),
      item_pairs=("a:i", "i:a"),
      label="label",
    ),
  )
  return c.to_config_dict(config)
