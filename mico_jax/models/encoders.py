"""The tables of encoders and text towers, by the name a config gives."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from mico_jax.models.bert import Bert
from mico_jax.models.vit import ViT

ENCODERS: dict[str, Callable[..., nn.Module]] = {"vit": ViT}
TEXT_ENCODERS: dict[str, Callable[..., nn.Module]] = {"bert": Bert}
