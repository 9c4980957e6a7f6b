"""Fields of the model: encoder, text tower, contexts and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from mico_jax.config.fields import (
  Choice,
  Depth,
  Groups,
  Heads,
  Items,
  Kernel,
  Key,
  Name,
  Names,
  Range,
  Rate,
  Tokens,
  Width,
)


@dataclass(frozen=True)
class VisionConfig:
  """The encoder shared by every knowledge modality."""

  encoder: Annotated[str, Key("mico_jax.models.ENCODERS")] = "vit"
  # Also mel bins and frames of an audio slice
  image_size: Annotated[int, Range(1, 8192, "pixels")] = 224
  # Must divide image_size
  patch_size: Annotated[int, Range(1, 8192, "pixels")] = 14
  width: Width = 1408
  depth: Depth = 40
  num_heads: Heads = 16
  mlp_dim: Annotated[int, Range(1, 524288, "channels")] = 6144
  norm_eps: Annotated[float, Range(1e-15, 0.1)] = 1e-6
  drop_path_rate: Rate = 0.0  # linearly increasing over depth
  # EVA-CLIP's own head; 0: no such head
  clip_embed_dim: Annotated[int, Range(0, 65536, "channels")] = 0
  clip_embed_bias: bool = True  # of that head; OpenAI's CLIP has none
  # "pre": x + f(norm(x)); "post": x + norm(f(x)), as in EVA-02-E.
  norm: Annotated[str, Choice("pre", "post")] = "pre"
  # "gelu" (exact) | "gelu_tanh" | "quick_gelu" (OpenAI's CLIP) | "swiglu"
  mlp: Annotated[str, Key("mico_jax.layers.mlp.MLPS")] = "gelu"
  # "qv": none on keys (EVA) | "all" | "none"
  qkv_bias: Annotated[str, Choice("qv", "all", "none")] = "qv"
  patch_bias: bool = True  # of the patch embedding; OpenAI's CLIP has none
  pre_norm: bool = False  # LayerNorm before the first block (CLIP)
  # LayerNorm before the last layer of attention and of the MLP (EVA-02).
  sub_norm: bool = False
  # > 0: rotary positions of the patches beside the learned ones, scaled to a
  # grid of this many patches along one side (EVA-02: 16).
  rope_grid: Annotated[int, Range(0, 1024, "patches")] = 0
  # tokens without position, left out of the result (DINOv2)
  registers: Annotated[int, Range(0, 1024, "tokens")] = 0
  # Token 0 of a frame: "class": a class token | "map": no such token, but
  # attention pooling of the patches (SigLIP).
  pooling: Annotated[str, Choice("class", "map")] = "class"
  # initial factor per channel of a branch; 0: none
  layer_scale: Annotated[float, Range(0.0, 10.0)] = 0.0
  # Encoders in stages (swin, convnext, unireplknet): blocks and width of each.
  # `depth` is their sum, `width` the last stage's; mlp_dim / width holds in
  # every stage; `patch_size` is the stride of the stem.
  stage_depths: Annotated[tuple[Depth, ...], Items(0, 16)] = ()
  stage_widths: Annotated[tuple[Width, ...], Items(0, 16)] = ()
  # Swin: heads of each stage; `num_heads` is the last stage's.
  stage_heads: Annotated[tuple[Heads, ...], Items(0, 16)] = ()
  # Swin: tokens along a side of a window
  window_size: Annotated[int, Range(1, 1024, "tokens")] = 7
  # UniRepLKNet: kernel sizes of each stage, repeated until its depth.
  stage_kernels: Annotated[
    tuple[Annotated[tuple[Kernel, ...], Items(1, 64)], ...], Items(0, 16)
  ] = ()


@dataclass(frozen=True)
class TextConfig:
  """The text tower: encodes, matches and writes captions."""

  encoder: Annotated[str, Key("mico_jax.models.TEXT_ENCODERS")] = "bert"
  vocab_size: Annotated[int, Range(0, 2**24, "tokens")] = 30522
  width: Width = 768
  depth: Depth = 12
  num_heads: Heads = 12
  # "causal": heads of keys and values, must divide num_heads; 0: as many
  kv_heads: Annotated[int, Range(0, 1024)] = 0
  mlp_dim: Annotated[int, Range(1, 524288, "channels")] = 3072
  max_positions: Tokens = 512
  type_vocab_size: Annotated[int, Range(1, 1024)] = 2
  # of the tokenizer: hidden from attention by default
  pad_id: Annotated[int, Range(0, 2**24)] = 0
  dropout: Rate = 0.1  # residual and attention dropout, training only
  norm_eps: Annotated[float, Range(1e-15, 0.1)] = 1e-12


@dataclass(frozen=True)
class ModelConfig:
  """MiCo: encoder, text tower, contexts and heads."""

  vision: VisionConfig = VisionConfig()
  text: TextConfig = TextConfig()
  embed_dim: Width = 512  # joint contrastive space
  # Contrastive heads, by letters of the modality table. One letter: linear
  # without bias; several: linear with bias on the concatenated pooled features.
  heads: Groups = (*"tsvadn", "va", "id", "vs", "vas")
  # Length of the frame table E_C per context type; also says which exist.
  # 0: the modality has none.
  frame_table: Annotated[
    Mapping[Name, Annotated[int, Range(0, 1024, "frames")]], Items(0, 64)
  ] = field(
    default_factory=lambda: {"video": 8, "audio": 4, "depth": 1, "normal": 1}
  )
  # A learned weight per frame and channel in the pooled features, so that
  # embeddings know the order of frames (left to right, or right to left). The
  # official model averages, and cannot.
  frame_weights: bool = False
  # Context types whose pooled features also hold what changes from one frame to
  # the next: attention over the differences of tokens, as motion is lost in a
  # mean over frames. It is a token of contexts, too. The official model has
  # none.
  frame_changes: Names = ()
  pool_frames: bool = False  # context keeps [cls, mean of the rest] per frame
  # "depth": normals use depth's tables and head
  normals_as: Annotated[str, Choice("normal", "depth")] = "normal"
  # "shared": one temperature of all groups, as released; "head": times a
  # learned factor of each contrastive head, so that groups that are learned
  # early do not set it for late ones.
  temperature: Annotated[str, Choice("shared", "head")] = "shared"
  temperature_init: Annotated[float, Range(1e-4, 100.0)] = 0.07
  # clamp; 0: none (as the official code)
  temperature_min: Annotated[float, Range(0.0, 100.0)] = 0.01
  # > 0: extra E_Pos over the context (paper, eq. 2)
  context_positions: Annotated[int, Range(0, 2**20, "tokens")] = 0
  # > 0: E_Sam table, a vector per corpus of a draw. For callers of the model
  # (`MiCo.context(sample_index=...)`): no task draws over corpora yet.
  sample_embeddings: Annotated[int, Range(0, 65536)] = 0
  # > 0: own position table of joined captions. For callers of the model
  # (`MiCo.text(joined=True)`): no task asks for it yet.
  joined_positions: Annotated[int, Range(0, 65536, "tokens")] = 0
  # "zero": fully masked attention rows give 0 with zero gradient; "released":
  # additive -10000, as the original.
  masked_rows: Annotated[str, Choice("zero", "released")] = "zero"
  # Drop the gradient of the embedding lookup of the pad id (the original's
  # `padding_idx`); the tied decoder still sends its own.
  freeze_pad_embedding: bool = True
  # Hide padded subtitle positions from cross-attention; the original does not.
  mask_subtitle_padding: bool = True
  # compute dtype: "float32" | "bfloat16"
  dtype: Annotated[str, Choice("float32", "bfloat16", "float16", "float64")] = (
    "float32"
  )
  # "default" | "high" | "highest"
  matmul_precision: Annotated[str, Choice("default", "high", "highest")] = (
    "default"
  )
  # kernel backend, see mico_jax.kernels.attention
  attention: Annotated[
    str, Key("mico_jax.kernels.attention.api.BACKENDS", ("auto",))
  ] = "auto"
  # policy name, see mico_jax.layers.stack.REMAT
  remat: Annotated[str, Key("mico_jax.layers.stack.REMAT")] = "none"
  # Scan over layers. False unrolls: slower to compile, but without copies of
  # what the backward pass needs (a fifth of a small step's time on a CPU).
  scan: bool = True
