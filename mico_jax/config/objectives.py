"""Fields of the objectives and of the tasks that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ContrastiveConfig:
  """Contrastive objective (ITC)."""

  weight: float = 1.0
  label_smoothing: float = 0.1
  share_identical_texts: bool = True  # identical texts share target mass
  # Groups whose contexts are also set against the batch's negative_text.
  explicit_negatives: tuple[str, ...] = ()
  detach_gathered: bool = False  # the original's gradient
  # "softmax", or "sigmoid" (SigLIP): every pair is a decision of its own, with
  # a learnable bias; goes with model.temperature_init=0.1.
  form: str = "softmax"
  bias_init: float = -10.0  # of the sigmoid form
  backend: str = "auto"  # see mico_jax.kernels.contrastive: xla, chunked, ring
  chunk: int = 0  # columns compared at a time; 0: automatic
  # Embeddings are rounded to this before they travel and are compared;
  # "bfloat16" halves both. "": as the heads give them, in float32.
  gather_dtype: str = ""


@dataclass(frozen=True)
class MatchingConfig:
  """Matching objective (ITM) with mined hard negatives."""

  weight: float = 0.1
  # Contexts are drawn from N consecutive global rows; 0: from all. Texts are
  # always drawn from all. Groups that lie on one device cost no traffic.
  group_rows: int = 0
  exclude_identical_texts: bool = True
  floor: float = 1e-4  # added to the mining probabilities
  explicit_negatives: bool = True  # use the batch's negative_text as well


@dataclass(frozen=True)
class CaptioningConfig:
  """Masked-causal captioning."""

  weight: float = 1.0
  mask_prob: float = 0.6
  label_smoothing: float = 0.0


@dataclass(frozen=True)
class QuestionAnsweringConfig:
  """Question answering: captioning of the answer after the question."""

  weight: float = 1.0
  mask_prob: float = 0.99


@dataclass(frozen=True)
class MaskedModellingConfig:
  """Masked modelling of knowledge tokens: the paradigm to compare with."""

  weight: float = 1.0
  mask_prob: float = 0.75  # of the patches


@dataclass(frozen=True)
class ObjectivesConfig:
  """Options of each objective of `mico_jax.objectives.OBJECTIVES`."""

  contrastive: ContrastiveConfig = ContrastiveConfig()
  matching: MatchingConfig = MatchingConfig()
  captioning: CaptioningConfig = CaptioningConfig()
  question_answering: QuestionAnsweringConfig = QuestionAnsweringConfig()
  masked_modelling: MaskedModellingConfig = MaskedModellingConfig()


@dataclass(frozen=True)
class TaskConfig:
  """A corpus with its groups and objectives: one task per optimizer step."""

  steps: int = 1  # integer weight (step budget)
  sources: Mapping[str, int] = field(default_factory=dict)  # integer weights
  batch_size: int = 64  # global
  # Objective -> groups, e.g. {"contrastive": ("tv", "tva")}.
  objectives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
  # Group -> {caption kind: weight}; unset: by its letters (see data.language).
  texts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
