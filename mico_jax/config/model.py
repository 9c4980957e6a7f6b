"""Fields of the model: encoder, text tower, contexts and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VisionConfig:
  """The encoder shared by every knowledge modality."""

  encoder: str = "vit"  # key of `mico_jax.models.ENCODERS`
  image_size: int = 224  # pixels; also mel bins and frames of an audio slice
  patch_size: int = 14  # pixels; must divide image_size
  width: int = 1408
  depth: int = 40
  num_heads: int = 16
  mlp_dim: int = 6144
  norm_eps: float = 1e-6
  drop_path_rate: float = 0.0  # linearly increasing over depth
  clip_embed_dim: int = 0  # EVA-CLIP's own head; 0: no such head
  clip_embed_bias: bool = True  # of that head; OpenAI's CLIP has none
  # "pre": x + f(norm(x)); "post": x + norm(f(x)), as in EVA-02-E.
  norm: str = "pre"
  # "gelu" (exact) | "gelu_tanh" | "quick_gelu" (OpenAI's CLIP) | "swiglu"
  mlp: str = "gelu"
  qkv_bias: str = "qv"  # "qv": none on keys (EVA) | "all" | "none"
  patch_bias: bool = True  # of the patch embedding; OpenAI's CLIP has none
  pre_norm: bool = False  # LayerNorm before the first block (CLIP)
  # LayerNorm before the last layer of attention and of the MLP (EVA-02).
  sub_norm: bool = False
  # > 0: rotary positions of the patches beside the learned ones, scaled to a
  # grid of this many patches along one side (EVA-02: 16).
  rope_grid: int = 0
  layer_scale: float = 0.0  # initial factor per channel of a branch; 0: none
  # Encoders in stages (swin, convnext, unireplknet): blocks and width of each.
  # `depth` is their sum, `width` the last stage's; mlp_dim / width holds in
  # every stage; `patch_size` is the stride of the stem.
  stage_depths: tuple[int, ...] = ()
  stage_widths: tuple[int, ...] = ()
  # Swin: heads of each stage; `num_heads` is the last stage's.
  stage_heads: tuple[int, ...] = ()
  window_size: int = 7  # Swin: tokens along a side of a window
  # UniRepLKNet: kernel sizes of each stage, repeated until its depth.
  stage_kernels: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class TextConfig:
  """The BERT-like tower: encodes, matches and writes captions."""

  encoder: str = "bert"  # key of `mico_jax.models.TEXT_ENCODERS`
  vocab_size: int = 30522
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  max_positions: int = 512
  type_vocab_size: int = 2
  pad_id: int = 0  # of the tokenizer: hidden from attention by default
  dropout: float = 0.1  # residual and attention dropout, training only
  norm_eps: float = 1e-12


@dataclass(frozen=True)
class ModelConfig:
  """MiCo: encoder, text tower, contexts and heads."""

  vision: VisionConfig = VisionConfig()
  text: TextConfig = TextConfig()
  embed_dim: int = 512  # joint contrastive space
  # Contrastive heads, by letters of the modality table. One letter: linear
  # without bias; several: linear with bias on the concatenated pooled features.
  heads: tuple[str, ...] = (*"tsvadn", "va", "id", "vs", "vas")
  # Length of the frame table E_C per context type; also says which exist.
  frame_table: Mapping[str, int] = field(
    default_factory=lambda: {"video": 8, "audio": 4, "depth": 1, "normal": 1}
  )
  # A learned weight per frame and channel in the pooled features, so that
  # embeddings know the order of frames (left to right, or right to left). The
  # released model averages, and cannot.
  frame_weights: bool = False
  pool_frames: bool = False  # context keeps [cls, mean of the rest] per frame
  normals_as: str = "normal"  # "depth": normals use depth's tables and head
  temperature_init: float = 0.07
  temperature_min: float = 0.01  # clamp; 0: none (as released)
  context_positions: int = 0  # > 0: extra E_Pos over the context (paper, eq. 2)
  # > 0: E_Sam table, a vector per corpus of a draw. For callers of the model
  # (`MiCo.context(sample_index=...)`): no task draws over corpora yet.
  sample_embeddings: int = 0
  # > 0: own position table of joined captions. For callers of the model
  # (`MiCo.text(joined=True)`): no task asks for it yet.
  joined_positions: int = 0
  # "zero": fully masked attention rows give 0 with zero gradient; "released":
  # additive -10000, as the original.
  masked_rows: str = "zero"
  # Drop the gradient of the embedding lookup of the pad id (the original's
  # `padding_idx`); the tied decoder still sends its own.
  freeze_pad_embedding: bool = True
  # Hide padded subtitle positions from cross-attention; the original does not.
  mask_subtitle_padding: bool = True
  dtype: str = "float32"  # compute dtype: "float32" | "bfloat16"
  matmul_precision: str = "default"  # "default" | "high" | "highest"
  attention: str = "auto"  # kernel backend, see mico_jax.kernels.attention
  remat: str = "none"  # policy name, see mico_jax.layers.stack.REMAT
  # Scan over layers. False unrolls: slower to compile, but without copies of
  # what the backward pass needs (a fifth of a small step's time on a CPU).
  scan: bool = True
