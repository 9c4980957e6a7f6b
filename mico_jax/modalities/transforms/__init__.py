"""Transforms that augment training samples: the one place that lists them.

To add one, write a frozen dataclass of `Transform` whose fields are its
options, and add its line here; configs name it in `tasks.NAME.augment`. They
are applied in the order of this table, whatever their order in a config.
Evaluation and inference never see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mico_jax.config import ConfigError, from_dict
from mico_jax.modalities.augmentation import Augmentation, Transform, View
from mico_jax.modalities.transforms.color import ColorJitter, RandAugment
from mico_jax.modalities.transforms.sound import (
  Equalize,
  Gain,
  Mixup,
  Shift,
  SpecAugment,
  Speed,
)
from mico_jax.modalities.transforms.space import (
  Flip,
  RandomErasing,
  RandomResizedCrop,
)
from mico_jax.printing import known_names

TRANSFORMS: dict[str, type[Transform]] = {
  "random_resized_crop": RandomResizedCrop,
  "flip": Flip,
  "color_jitter": ColorJitter,
  "rand_augment": RandAugment,
  "random_erasing": RandomErasing,
  "mixup": Mixup,
  "speed": Speed,
  "shift": Shift,
  "equalize": Equalize,
  "gain": Gain,
  "spec_augment": SpecAugment,
}


def make_transforms(
  augment: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[Transform, ...]:
  """The transforms of a config, in the order of the table.

  Args:
    augment: name -> options.
    where: field of the config that holds them; errors begin with it.

  Raises:
    ConfigError: for an unknown transform or option, or a wrong value.
  """
  for name in augment:
    if name not in TRANSFORMS:
      raise ConfigError(
        f"{where} names {name!r}; {known_names(name, TRANSFORMS)}"
      )
  return tuple(
    from_dict(augment[name], kind, where=f"{where}.{name}")
    for name, kind in TRANSFORMS.items()
    if name in augment
  )


__all__ = [
  "TRANSFORMS",
  "Augmentation",
  "Transform",
  "View",
  "make_transforms",
]
