"""Scaling laws in small: modalities, data, model and objectives on OmniWorld.

    mico-jax sweep --config scaling
    mico-jax sweep --config scaling:PATH/grid_av/manifest.jsonl

The paper fine-tunes each checkpoint on a fixed set of retrieval tasks, so that
models which never saw a modality can be compared. Here each run ends with that
fine-tuning: its last `TUNE` steps (a stage of the run) train the same six tasks
on the same 4,096 other scenes, whatever came before. What is averaged is R@1
of these tasks on test scenes. The loss of the last steps is one of the same
tasks as well, so it compares points, too.

Everything is small, so that a run takes about a minute of one CPU core.
"""

from typing import Any

import ml_collections

from mico_jax import config as c
from mico_jax.run.sweep.plan import PanelConfig, PointConfig, SweepConfig

PRETRAIN, TUNE = 120, 40  # steps
SCENES = 4096  # of pretraining: each is seen once
CHANGE = ("tasks.pretrain.steps=0", "tasks.tune.steps=1")
# The fixed tasks: text against these contexts.
CONTEXTS = ("i", "v", "a", "d", "va", "vad")
ALL = ("ti", "tv", "ta", "td", "tn", "tva", "tvad")


def towers(width: int, heads: int) -> dict[str, Any]:
  """Fields of both towers, by their width."""
  return {"width": width, "num_heads": heads, "mlp_dim": 4 * width}


def world(split: str, size: int, seed: int = 0) -> c.SourceConfig:
  """A part of OmniWorld."""
  return c.SourceConfig(kind="omniworld", split=split, size=size, seed=seed)


def data() -> c.DataConfig:
  """OmniWorld for pretraining, fine-tuning, choosing and measuring."""
  plain = lambda frames: c.InputConfig(frames=frames, mode="plain")
  return c.DataConfig(
    sources={
      "train": world("train", SCENES),
      "tune": world("train", 4096, seed=1),
      # What settings are chosen on: --config.evaluation.source=val
      "val": world("train", 10_000, seed=7),
      "test": world("test", 10_000),
    },
    inputs={
      "image": plain(1),
      "video": plain(2),
      "audio": plain(2),
      "depth": c.InputConfig(frames=1),
      "normal": plain(1),
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
      },
    ),
    num_threads=1,
    prefetch=8,
  )


def get_config() -> ml_collections.ConfigDict:
  """The point where all panels meet: all modalities, data and objectives."""
  config = c.Config(
    name="scaling",
    model=c.ModelConfig(
      vision=c.VisionConfig(
        image_size=32, patch_size=8, depth=2, **towers(48, 3)
      ),
      text=c.TextConfig(
        vocab_size=512,
        depth=1,
        max_positions=64,
        dropout=0.0,
        **towers(48, 3),
      ),
      embed_dim=64,
      scan=False,
      frame_weights=True,
      heads=("t", "v", "a", "d", "n", "va", "vad"),
      frame_table={"video": 2, "audio": 2, "depth": 1, "normal": 1},
    ),
    data=data(),
    tasks={
      "pretrain": c.TaskConfig(
        sources={"train": 1}, batch_size=32, objectives=objectives(ALL)
      ),
      "tune": c.TaskConfig(
        steps=0,
        sources={"tune": 1},
        batch_size=32,
        objectives={"contrastive": tuple(f"t{x}" for x in CONTEXTS)},
      ),
    },
    stages={"tune": c.StageConfig(start=PRETRAIN, set=CHANGE)},
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(label_smoothing=0.0),
      matching=c.MatchingConfig(
        weight=1.0, floor=0.02, explicit_negatives=False
      ),
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=3e-3,
      schedule="cosine",
      warmup=0.1,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(
      steps=PRETRAIN + TUNE,
      log_every=5,
      checkpoint_every=80,
      keep=1,
      tensorboard=False,
    ),
    evaluation=c.EvaluationConfig(
      suite="text_retrieval",
      source="test",
      size=400,
      groups=CONTEXTS,
      examples=0,
      bootstrap=100,  # the sweep draws its own
    ),
  )
  return c.to_config_dict(config)


def objectives(
  groups: tuple[str, ...], last: str = "matching,captioning"
) -> dict[str, tuple[str, ...]]:
  """Contrastive over all groups, the others of the widest one."""
  more = {name: groups[-1:] for name in last.split(",") if name}
  return {"contrastive": groups, **more}


def trained(value: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
  """The override that pretrains other objectives or groups."""
  return (f"tasks.pretrain.objectives={value!r}",)


def width(channels: int, heads: int) -> tuple[str, ...]:
  """The overrides of a model of another width."""
  return tuple(
    f"model.{tower}.{field}={value}"
    for tower in ("vision", "text")
    for field, value in towers(channels, heads).items()
  )


def clips(manifest: str) -> PanelConfig:
  """Spoken sentences: sound, faces, or both before the same fine-tuning."""
  groups = {"V": ("tv",), "A": ("ta",), "A+V": ("tv", "ta", "tva")}
  task = {"sources": {"train": 1}, "batch_size": 32}
  final = {**task, "steps": 0, "objectives": {"contrastive": groups["A+V"]}}
  pretrain = lambda g: {**task, "objectives": objectives(g)}
  stage = {"start": 240, "set": CHANGE}
  return PanelConfig(
    title="Talking faces (real)",
    config=f"perception/grid_av:{manifest}",
    set=(
      *width(48, 3),
      "model.vision.depth=2",
      "model.text.depth=1",
      f"stages={dict(tune=stage)!r}",
      "train.steps=320",
      "train.log_every=10",
      "train.checkpoint_every=160",
      "train.tensorboard=False",
      "evaluation.groups=('v', 'a', 'va')",
      "evaluation.examples=0",
    ),
    points={
      name: PointConfig((f"tasks={dict(pretrain=pretrain(g), tune=final)!r}",))
      for name, g in groups.items()
    },
    metrics=tuple(f"retrieval/t->{x}/R@10" for x in ("v", "a", "va")),
  )


def get_sweep(manifest: str = "") -> SweepConfig:
  """Four panels on OmniWorld, and one on real clips where they are given.

  Args:
    manifest: path of the manifest.jsonl of grid_av; "": without that panel.
  """
  point = PointConfig
  size = lambda n: point(set=(f"data.sources.train.size={n}",), x=n)
  panels = {
    "modalities": PanelConfig(
      title="Modalities",
      points={
        "I": point(trained(objectives(("ti",))), published=39.4),
        "I+A": point(trained(objectives(("ti", "ta"))), published=39.4),
        "I+3D": point(trained(objectives(("ti", "td", "tn"))), published=40.2),
        "I+V": point(trained(objectives(("ti", "tv"))), published=41.3),
        "I+V+A": point(
          trained(objectives(("ti", "tv", "ta", "tva"))), published=43.2
        ),
        "I+V+A+3D": point(published=45.3),
      },
    ),
    "data": PanelConfig(
      title="Data",
      axis="given",
      axis_label="scenes of pretraining",
      points={str(n): size(n) for n in (16, 64, 256, 1024)}
      | {str(SCENES): point(x=SCENES)},
    ),
    "objectives": PanelConfig(
      title="Objectives",
      points={
        "masked": point(trained({"masked_modelling": ("ti", "tv")})),
        "image-text": point(trained(objectives(("ti",), ""))),
        "con": point(trained(objectives(ALL, "")), published=42.1),
        "con+match": point(
          trained(objectives(ALL, "matching")), published=43.4
        ),
        "con+match+gen": point(published=45.3),
      },
    ),
    "model": PanelConfig(
      title="Model",
      axis="parameters",
      axis_label="parameters",
      points={
        "12": point(width(12, 1)),
        "20": point(width(20, 1)),
        "32": point(width(32, 2)),
        "48": point(),
      },
    ),
  }
  if manifest:
    panels["grid_av"] = clips(manifest)
  return SweepConfig(
    panels=panels,
    metrics=tuple(f"retrieval/t->{x}/R@1" for x in CONTEXTS),
  )
