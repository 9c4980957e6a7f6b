r"""Chairs and monitors of ModelNet10 as clouds of points.

    cd FOLDER  # with shapes_chair_monitor.npz
    python -m mico_jax.data.parts entries shapes_chair_monitor.npz \
        --splits train test --media pointcloud={split}_points \
        --field class_name={split}_y --names class_name=classes \
        --captions "a 3D model of a chair" "a 3D model of a monitor" \
        > shapes_chair_monitor.jsonl
    mico-jax pretrain --config perception/shapes_chair_monitor:FOLDER/shapes_chair_monitor.jsonl

A line names a cloud of 1024 points on the surface, places of voxels:
{"pointcloud": "shapes_chair_monitor.npz:train_points[0]", "class_name":
"chair", "caption": "a 3D model of a chair", "split": "train"}. A head learns the
class beside the contrast with the caption. Behind a comma "validation":
settings are chosen on a fifth of the training samples. Wu et al., CVPR 2015.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "shapes_chair_monitor.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of shapes_chair_monitor.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "shapes_chair_monitor",
    small_sets.sources(argument, captions={"omni": "caption"}, by="class_name"),
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=48,
      depth=2,
      num_heads=4,
      mlp_dim=96,
    ),
    heads=("t", "p"),
    frame_table={"pointcloud": 1},
    groups={"tp": {"omni": 1.0}},
    inputs={"pointcloud": c.InputConfig(mode="jitter")},
    batch_size=16,
    steps=150,
    learning_rate=1e-3,
    learned={"classification": {"targets": {"p": {"fields": ("class_name",)}}}},
    evaluation={"label": "class_name"},
  )
  return c.to_config_dict(config)
