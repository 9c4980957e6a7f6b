"""MiCo's pretraining at ViT-B/16: the paper's mixture, groups and steps.

    mico-jax pretrain --config mico_b16:ROOT
    mico-jax plan --config mico_b16 --topology v5e:16x16

    mico-jax pretrain --config mico_b16:ROOT@v5p:4x4x4

ROOT is a folder with `vocab.txt` (BERT uncased) and, for each corpus, a folder
with a manifest: ROOT/vast27m/manifest.jsonl and so on. `mico_l14` and
`mico_g14` are this recipe with another model and length. Behind the @ are the
devices whose mesh, rematerialisation and micro-batches are taken (`CHOICES`).

Steps and batches are those of the paper's table (VAST-27M 160,000 at 2,048,
VALOR-1M 70,000 at 1,024, the single-modality corpora 70,000 at 1,024), as
weights of `train.steps`. What the paper leaves open and is chosen here: how the
last 70,000 divide (WavCaps, CC4M, WebVid-2.5M: 15, 30, 25), and the factor on
the learning rate of the encoder.
"""

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.models.presets import PRESETS
from mico_jax.parallel.choice import GPUS, Choice, chosen, split_argument

# Planned, see mico_jax/docs/plans.md.
CHOICES = {
  # Parameters, gradients and Adam's moments lie split over sixteen devices each
  # and are gathered layer by layer. Attention is kept from the forward pass,
  # the rest is computed again. On v5e:16x16 a step takes 0.228 s so; with whole
  # parameters everywhere (`ddp`) or split over all 256 devices 0.269 s.
  "v5e:16x16": Choice(remat="attention"),
  "v5p:4x4x4": Choice(remat="attention"),
  "v6e:16x16": Choice(remat="attention"),
  # Eight GPUs share 2,048 rows: 256 each, with four views, in few parts,
  # as parts are encoded twice. More than 16 would leave tasks of 1,024 rows
  # less than a mining group.
  "h100:8": Choice(mesh=GPUS, remat="attention", micro_batches=2),
  "h200:8": Choice(mesh=GPUS, remat="attention"),
}

# As VAST's "crop_flip", which pairs it with a centre crop in evaluation. Depth
# is cut and mirrored with its image.
AUGMENT = {
  "random_resized_crop": {"scale": (0.8, 1.0), "ratio": (1.0, 1.0)},
  "flip": {"horizontal": 0.5},
}


def task(
  source: str, *groups: str, steps: int, batch_size: int = 1024
) -> c.TaskConfig:
  """A corpus whose groups are contrasted, matched and captioned alike."""
  names = ("contrastive", "matching", "captioning")
  seen = any(set(group) & set("vid") for group in groups)
  return c.TaskConfig(
    steps=steps,
    sources={source: 1},
    batch_size=batch_size,
    objectives=dict.fromkeys(names, groups),
    augment=AUGMENT if seen else {},
  )


TASKS = {
  "vast27m": task("vast27m", "tvas", "tva", "tid", steps=160, batch_size=2048),
  "valor1m": task("valor1m", "tva", "tv", "ta", steps=70),
  "wavcaps": task("wavcaps", "ta", steps=15),
  "cc4m": task("cc4m", "ti", "tid", steps=30),
  "webvid": task("webvid", "tv", steps=25),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """The recipe at size B.

  Args:
    argument: "ROOT@DEVICES": folder of the corpora and `vocab.txt` (default:
      pretraining), and a key of `CHOICES` (default: the first).
  """
  root, devices = split_argument(argument)
  root = root or "pretraining"
  corpus = lambda name, split="train": c.SourceConfig(
    kind="manifest",
    path=f"{root}/{name}/manifest.jsonl",
    split=split,
    depth_unit="relative",  # predicted by a monocular network
  )
  config = c.Config(
    name="mico_b16",
    model=dataclasses.replace(PRESETS["mico_b16"], dtype="bfloat16"),
    data=c.DataConfig(
      sources={
        "vast27m": corpus("vast27m"),
        "valor1m": corpus("valor1m"),
        "wavcaps": corpus("wavcaps"),
        "cc4m": corpus("cc4m"),
        "webvid": corpus("webvid"),
        "test": corpus("msrvtt", "test"),
      },
      # One frame and one slice of ten seconds a clip, as VAST trains.
      inputs={
        "image": c.InputConfig(1, "mico_train", eval_mode="crop_flip"),
        "video": c.InputConfig(1, "mico_train", eval_mode="crop_flip"),
        "audio": c.InputConfig(frames=1),
        "depth": c.InputConfig(1, "relative", eval_mode="relative_crop_flip"),
      },
      tokenizer=c.TokenizerConfig(kind="wordpiece", path=f"{root}/vocab.txt"),
      num_threads=16,
      prefetch=4,
    ),
    tasks=TASKS,
    objectives=c.ObjectivesConfig(
      # Contexts are mined among eight neighbours: on 256 chips these are the
      # rows of one device at batch 2,048, so no context travels.
      matching=c.MatchingConfig(group_rows=8),
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=1e-4,
      b2=0.98,
      eps=1e-6,
      weight_decay=0.01,
      schedule="linear",
      warmup=0.1,
      # The encoder starts from CLIP and moves slower, as VALOR-large does.
      lr_multipliers={r"^vision/": 0.16},
    ),
    train=c.TrainConfig(steps=200_000, log_every=50, checkpoint_every=5_000),
    generation=c.GenerationConfig(3, length_penalty=0.6, max_new_tokens=40),
    evaluation=c.EvaluationConfig(
      source="test",
      size=1000,
      batch_size=512,
      groups=("v", "va", "vas"),
      rerank=50,
      captions=1000,
    ),
  )
  return c.to_config_dict(chosen(config, CHOICES, devices))
