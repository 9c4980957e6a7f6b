"""Eight sensors bound by text, and retrieval between those that never met.

    mico-jax pretrain --config any_to_any

Thermal pictures, recordings of inertial sensors and point clouds are three
corpora of their own: each is a task on scenes of its own, whose samples have
text beside them and no other sensor. Images, clips and sounds, depth and
normals are two more. What is measured besides text to each sensor is what no
task trains: thermal picture to sound, recording to clip, point cloud to image.

Each sensor is described by what it can tell, and as often by the caption of the
whole scene, which is of one kind for all and so what they meet in.
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
  heads=("t", "v", "a", "d", "n", "h", "m", "p"),
  frame_table={
    "video": 2,
    "audio": 2,
    "depth": 1,
    "normal": 1,
    "thermal": 1,
    "imu": 1,
    "pointcloud": 1,
  },
)

# Pairs of sensors that no task trains together, at all.
UNMET = ("h:a", "m:v", "p:i", "p:a", "m:a", "h:i", "h:p")


def corpus(
  source: str, kinds: dict[str, str], steps: int, batch_size: int = 64
) -> c.TaskConfig:
  """A task: texts against each sensor of a source.

  Args:
    source: name of the source.
    kinds: group -> kind of the captions that tell what it shows.
    steps: weight of the task.
    batch_size: samples of a step.
  """
  return c.TaskConfig(
    steps=steps,
    sources={source: 1},
    batch_size=batch_size,
    objectives={"contrastive": tuple(kinds)},
    texts={group: {kind: 0.5, "omni": 0.5} for group, kind in kinds.items()},
  )


TASKS = {
  "clips": corpus("clips", {"tv": "vision", "ti": "vision", "ta": "audio"}, 4),
  "shapes": corpus("clips", {"td": "depth", "tn": "normal"}, 2),
  "thermal": corpus("thermal", {"th": "thermal"}, 3),
  "imu": corpus("imu", {"tm": "imu"}, 2),
  "pointcloud": corpus("pointcloud", {"tp": "pointcloud"}, 3, 32),
}


def world(split: str, size: int, seed: int = 0) -> c.SourceConfig:
  """A part of OmniWorld v2; seeds have different scenes."""
  return c.SourceConfig(
    kind="omniworld", version="v2", split=split, size=size, seed=seed
  )


def get_config() -> ml_collections.ConfigDict:
  """All corpora in one run: about ten minutes on two CPU cores."""
  config = c.Config(
    name="any_to_any",
    model=MODEL,
    data=c.DataConfig(
      sources={
        "clips": world("train", 1_000_000),
        "thermal": world("train", 1_000_000, seed=1),
        "imu": world("train", 1_000_000, seed=2),
        "pointcloud": world("train", 1_000_000, seed=3),
        # What settings are chosen on: --config.evaluation.source=val
        "val": world("train", 10_000, seed=7),
        "test": world("test", 10_000),
      },
      inputs={
        "image": c.InputConfig(frames=1, mode="plain"),
        "video": c.InputConfig(frames=2, mode="plain"),
        "audio": c.InputConfig(frames=2, mode="plain"),
        "depth": c.InputConfig(frames=1),
        "normal": c.InputConfig(frames=1, mode="plain"),
        "thermal": c.InputConfig(frames=1),
        # Accelerations differ a hundredfold between a table and a hangar.
        "imu": c.InputConfig(frames=1, mode="standardised"),
        "pointcloud": c.InputConfig(frames=1),
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
          "thermal": 28,
          "imu": 20,
          "pointcloud": 25,
        },
      ),
      num_threads=1,
      prefetch=16,
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
    train=c.TrainConfig(steps=1120, log_every=14, checkpoint_every=280),
    evaluation=c.EvaluationConfig(
      suite="omniworld",
      source="test",
      size=256,
      groups=("v", "i", "a", "d", "n", "h", "m", "p"),
      options={"instance_pairs": {"pairs": UNMET}},
    ),
  )
  return c.to_config_dict(config)
