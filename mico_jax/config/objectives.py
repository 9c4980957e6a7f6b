"""Fields of the objectives and of the tasks that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from mico_jax.config.fields import (
  Choice,
  Count,
  Fraction,
  Group,
  Groups,
  Items,
  Key,
  Name,
  Options,
  Range,
  Rate,
  Rows,
  Steps,
  Weight,
)


@dataclass(frozen=True)
class ContrastiveConfig:
  """Contrastive objective (ITC)."""

  weight: Weight = 1.0
  label_smoothing: Rate = 0.1
  share_identical_texts: bool = True  # identical texts share target mass
  # Groups whose contexts are also set against the batch's negative_text.
  explicit_negatives: Groups = ()
  detach_gathered: bool = False  # the original's gradient
  # "softmax", or "sigmoid" (SigLIP): every pair is a decision of its own, with
  # a learnable bias; goes with model.temperature_init=0.1.
  form: Annotated[str, Choice("softmax", "sigmoid")] = "softmax"
  bias_init: Annotated[float, Range(-1e3, 1e3)] = -10.0  # of the sigmoid form
  # see mico_jax.kernels.contrastive: xla, chunked, ring
  backend: Annotated[
    str, Key("mico_jax.kernels.contrastive.api.BACKENDS", ("auto",))
  ] = "auto"
  # columns compared at a time; 0: automatic
  chunk: Annotated[int, Range(0, 2**24, "columns")] = 0
  # Embeddings are rounded to this before they travel and are compared;
  # "bfloat16" halves both. "": as the heads give them, in float32.
  gather_dtype: Annotated[str, Choice("", "float32", "bfloat16", "float16")] = (
    ""
  )


@dataclass(frozen=True)
class MatchingConfig:
  """Matching objective (ITM) with mined hard negatives."""

  weight: Weight = 0.1
  # Contexts are drawn from N consecutive global rows; 0: from all. Texts are
  # always drawn from all. Groups that lie on one device cost no traffic.
  group_rows: Annotated[int, Range(0, 2**24, "rows")] = 0
  exclude_identical_texts: bool = True
  # added to the mining probabilities
  floor: Annotated[float, Range(0.0, 1.0)] = 1e-4
  explicit_negatives: bool = True  # use the batch's negative_text as well
  # A row's true pair weighs as much as all its false ones together; otherwise
  # all pairs weigh the same, as in the original, and many false ones of nearly
  # true texts teach to say no.
  balanced: bool = False


@dataclass(frozen=True)
class CaptioningConfig:
  """Masked-causal captioning."""

  weight: Weight = 1.0
  mask_prob: Annotated[float, Range(0.001, 1.0)] = 0.6
  label_smoothing: Rate = 0.0


@dataclass(frozen=True)
class QuestionAnsweringConfig:
  """Question answering: captioning of the answer after the question."""

  weight: Weight = 1.0
  mask_prob: Annotated[float, Range(0.001, 1.0)] = 0.99


@dataclass(frozen=True)
class MaskedModellingConfig:
  """Masked modelling of knowledge tokens: the paradigm to compare with."""

  weight: Weight = 1.0
  mask_prob: Fraction = 0.75  # of the patches


@dataclass(frozen=True)
class ObjectivesConfig:
  """Options of each objective of `mico_jax.objectives.OBJECTIVES`."""

  contrastive: ContrastiveConfig = ContrastiveConfig()
  matching: MatchingConfig = MatchingConfig()
  captioning: CaptioningConfig = CaptioningConfig()
  question_answering: QuestionAnsweringConfig = QuestionAnsweringConfig()
  masked_modelling: MaskedModellingConfig = MaskedModellingConfig()
  # Name -> {option: value} of objectives of the table that are no field here.
  options: Annotated[Mapping[Name, Options], Items()] = field(
    default_factory=dict
  )


@dataclass(frozen=True)
class TaskConfig:
  """A corpus with its groups and objectives: one task per optimizer step."""

  steps: Steps = 1  # integer weight (step budget)
  # integer weights
  sources: Annotated[Mapping[Name, Steps], Items()] = field(
    default_factory=dict
  )
  # T > 0: a source of n samples is read in proportion to its weight times
  # n**(1 / T). 1: all samples equally often; large: all sources; 0: by the
  # weights alone. See `mico_jax.data.mixture`.
  temperature: Annotated[float, Range(0.0, 1e6)] = 0.0
  batch_size: Rows = 64  # global
  # gradient norm to which its steps are clipped; -1: optimizer.clip_norm, 0:
  # they are not clipped
  clip_norm: Annotated[float, Range(-1.0, 1e9)] = -1.0
  # Objective -> groups, e.g. {"contrastive": ("tv", "tva")}; "i:d" contrasts
  # two contexts without a text, and needs no captions.
  objectives: Annotated[Mapping[Name, Groups], Items(0, 64)] = field(
    default_factory=dict
  )
  # Group -> {caption kind: weight}; unset: by its letters (see data.language).
  texts: Annotated[
    Mapping[Group, Annotated[Mapping[Name, Weight], Items(0, 64)]], Items(0, 64)
  ] = field(default_factory=dict)
  # What `temperature` and `data.text_buckets` came to: source -> weight,
  # "source/L" -> samples; filled when the run starts.
  mixture: Annotated[Mapping[Name, Count], Items()] = field(
    default_factory=dict
  )
  # Transform -> {option: value}, see docs/transforms.md: augmentation of its
  # training samples, applied in the order of that table.
  augment: Annotated[Mapping[Name, Options], Items(0, 64)] = field(
    default_factory=dict
  )
