"""The tables of encoders and text towers, by the name a config gives."""

from __future__ import annotations

from mico_jax.models.bert import Bert
from mico_jax.models.causal import CausalLM
from mico_jax.models.convnext import ConvNeXt
from mico_jax.models.encoder import Encoder
from mico_jax.models.swin import Swin
from mico_jax.models.text_tower import TextTower
from mico_jax.models.unireplknet import UniRepLKNet
from mico_jax.models.vit import ViT

ENCODERS: dict[str, type[Encoder]] = {
  "vit": ViT,
  "swin": Swin,
  "convnext": ConvNeXt,
  "unireplknet": UniRepLKNet,
}
TEXT_ENCODERS: dict[str, type[TextTower]] = {
  "bert": Bert,
  "causal": CausalLM,
}
