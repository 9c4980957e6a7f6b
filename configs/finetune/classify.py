"""Single-modality classification: a sample takes the nearest class caption.

    mico-jax pretrain --config finetune/classify:image,PATH/manifest.jsonl,vocab.txt --init CKPT

Records hold a caption made of their class and its number as "label". The rows
are those of ViT-g in the paper's appendix (5e-5, batch 512, weight decay 1e-8,
no warm-up, cosine; 30 epochs, 20 for video and depth) and, as "*_large", of
ViT-L (4e-3, 4096, 0.05, 5 epochs of warm-up, 90 epochs, stochastic depth 0.2).
Pictures are cropped, flipped, changed by RandAugment (where the paper has
AutoAugment, which takes the place of colour jitter) and erased; depth is
cropped, flipped and erased. Mixup and cutmix of pictures, which mix classes,
are left out: a class is a caption here.
Samples: ImageNet-1K, Kinetics-700, AudioSet-2M and NYU-D; override
`train.steps` for others.
"""  # noqa: E501

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.train.finetuning import Setting, make, parse

TABLE = {
  "image": Setting("ti", 5e-5, 512, 30, 1_281_167),
  "video": Setting("tv", 5e-5, 512, 20, 545_317, frames=8, test_frames=8),
  "audio": Setting("ta", 5e-5, 512, 30, 2_042_985),
  "depth": Setting("td", 5e-5, 512, 20, 795),
  "image_large": Setting("ti", 4e-3, 4096, 90, 1_281_167),
  "audio_large": Setting("ta", 4e-3, 4096, 90, 2_042_985),
}

# ImageNet's usual crops; erasing as in the paper's appendix.
CROPS = {
  "random_resized_crop": {"scale": (0.08, 1.0)},
  "flip": {},
  "random_erasing": {"probability": 0.25},
}
AUGMENT = {
  "image": {**CROPS, "rand_augment": {"num_ops": 2, "magnitude": 9.0}},
  "video": {**CROPS, "rand_augment": {"num_ops": 2, "magnitude": 9.0}},
  "depth": CROPS,
}


def get_config(arg: str = "image") -> ml_collections.ConfigDict:
  """Config of "SET,MANIFEST,VOCABULARY,PRESET"; see `finetuning.parse`."""
  name, setting, manifest, vocabulary, model = parse(arg, TABLE)
  large = name.endswith("_large")
  drop_path = 0.2 if large else 0.25
  vision = dataclasses.replace(model.vision, drop_path_rate=drop_path)
  config = make(
    name,
    setting,
    manifest,
    vocabulary,
    dataclasses.replace(model, vision=vision),
    objectives={"contrastive": (setting.group,)},
    augment=AUGMENT.get(name.removesuffix("_large"), {}),
    max_length={"default": 20},
    evaluation={"suite": "classification", "label": "label"},
    optimizer={
      "name": "adamw",
      "schedule": "cosine",
      "weight_decay": 0.05 if large else 1e-8,
      "warmup": 5 / 90 if large else 0.0,
    },
  )
  return c.to_config_dict(config)
