r"""What covers a pixel of Jasper Ridge: trees, water, soil or a road (AVIRIS).

    cd FOLDER  # with hyperspectral_jasper.npz
    python -m mico_jax.data.parts pixels hyperspectral_jasper.npz \
        --media hyperspectral=cube --field class_name=labels \
        --names class_name=classes --test test_mask \
        --captions "a place with trees" "water" "bare soil" "a road" \
        > hyperspectral_jasper.jsonl
    mico-jax pretrain --config perception/hyperspectral_jasper:FOLDER/hyperspectral_jasper.jsonl

A line names a pixel, which is seen with those around it: {"hyperspectral":
"hyperspectral_jasper.npz:cube@0,0", "class_name": "tree", "caption": "a place
with trees", "row": 0, "column": 0, "split": "train"}. Test pixels are blocks of
10 x 10; what lies around a pixel may be of the other part, without its label. A
head learns the class beside the contrast with the caption. Behind a comma
"validation": settings are chosen on two bands of ten rows of the training
part.

The set says neither the unit of its numbers, which are taken as counts, nor its
wavelengths: they are those of 224 bands at equal steps from 380 to 2500 nm
without 1-3, 108-112, 154-166 and 220-224, which are left out for water vapour
in the 198 bands of this scene that are usual.
"""  # noqa: E501

import ml_collections
import numpy as np

from mico_jax import config as c
from mico_jax.train import small_sets

LEFT_OUT = (*range(1, 4), *range(108, 113), *range(154, 167), *range(220, 225))
WAVELENGTHS = np.delete(np.linspace(380, 2500, 224), np.array(LEFT_OUT) - 1)
SIDE = 100  # rows of the scene
HELD = (*range(20, 30), *range(70, 80))


def get_config(
  argument: str = "hyperspectral_jasper.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of hyperspectral_jasper.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  others = tuple(row for row in range(SIDE) if row not in HELD)
  bands = ",".join(f"{length:.1f}" for length in WAVELENGTHS)
  config = small_sets.make(
    "hyperspectral_jasper",
    small_sets.sources(
      argument,
      captions={"omni": "caption"},
      held=({"row": others}, {"row": HELD}),
      stated={
        "units": {"hyperspectral": "counts"},
        "channels": {"hyperspectral": bands},
      },
    ),
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=48,
      depth=2,
      num_heads=4,
      mlp_dim=96,
    ),
    heads=("t", "y"),
    frame_table={"hyperspectral": 1},
    groups={"ty": {"omni": 1.0}},
    inputs={"hyperspectral": c.InputConfig(mode="logarithmic_jitter")},
    batch_size=64,
    steps=400,
    learning_rate=1e-3,
    learned={"classification": {"targets": {"y": {"fields": ("class_name",)}}}},
    evaluation={"label": "class_name"},
  )
  return c.to_config_dict(config)
