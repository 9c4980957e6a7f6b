"""Fields of the loop, of what it measures, and `Config`: a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from mico_jax.config.data import DataConfig
from mico_jax.config.fields import (
  Choice,
  Count,
  Devices,
  Fraction,
  Groups,
  Items,
  Key,
  Keys,
  Label,
  Name,
  Names,
  Options,
  Path,
  Pattern,
  Patterns,
  Range,
  Rate,
  Rows,
  Seed,
  Steps,
  Text,
  Tokens,
)
from mico_jax.config.model import ModelConfig
from mico_jax.config.objectives import ObjectivesConfig, TaskConfig


@dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer, schedule and parameter groups."""

  name: Annotated[str, Key("mico_jax.train.optimizer.OPTIMIZERS")] = "adamw"
  learning_rate: Annotated[float, Range(0.0, 1e3)] = 1e-4
  b1: Annotated[float, Range(0.0, 0.99999999)] = 0.9
  b2: Annotated[float, Range(0.0, 0.99999999)] = 0.98
  eps: Annotated[float, Range(0.0, 1.0)] = 1e-6
  weight_decay: Annotated[float, Range(0.0, 1e3)] = 0.01
  # Paths (regex, re.search on "a/b/c") without weight decay.
  no_decay: Patterns = (r"bias$", r"/scale\d*$", r"temperature$")
  # "linear" | "cosine" | "constant"
  schedule: Annotated[str, Key("mico_jax.train.optimizer.SCHEDULES")] = "linear"
  # fraction of the steps if < 1, else steps
  warmup: Annotated[float, Range(0.0, 1e9, "share or steps")] = 0.1
  end_fraction: Fraction = 0.0  # of the learning rate at the last step
  # global gradient norm; 0: none
  clip_norm: Annotated[float, Range(0.0, 1e9)] = 2.0
  # Path regex -> factor on the learning rate; 0 freezes. First match wins.
  lr_multipliers: Annotated[
    Mapping[Pattern, Annotated[float, Range(0.0, 1e6)]], Items()
  ] = field(default_factory=dict)
  freeze: Patterns = ()  # path regexes without update
  # per block of the shared encoder, from the top
  layer_decay: Annotated[float, Range(1e-6, 1.0)] = 1.0
  # decay of the averaged weights; 0: none
  ema: Annotated[float, Range(0.0, 0.9999999)] = 0.0
  # Of moments and the like: "bfloat16" halves them, rounded at random (see
  # train.stochastic_rounding); name="adafactor" keeps factors of them instead.
  state_dtype: Annotated[str, Choice("float32", "bfloat16")] = "float32"
  # > 0: train low-rank deltas of `lora_targets` only
  lora_rank: Annotated[int, Range(0, 65536)] = 0
  lora_alpha: Annotated[float, Range(0.0, 1e6)] = 16.0
  lora_targets: Patterns = (r"attn/(qkv|proj)/kernel$",)
  # Path regexes that are trained whole beside deltas, such as the embedding of
  # a new sensor; heads of objectives always are.
  lora_also: Patterns = ()


@dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  steps: Annotated[int, Range(1, 10**9, "steps")] = 1000
  patch_dropout: Rate = 0.0  # fraction of patch tokens dropped in training
  # A step's batch in so many parts, for activations that do not fit at once:
  # the same gradient, by cached embeddings where rows are compared.
  micro_batches: Annotated[int, Range(1, 2**20)] = 1
  log_every: Annotated[int, Range(1, 10**9, "steps")] = 10  # steps
  checkpoint_every: Steps = 500  # steps; the last step always saves
  # newest checkpoints kept
  keep: Annotated[int, Range(1, 10**6, "checkpoints")] = 3
  # Metric whose best checkpoint is kept beside: of the evaluation at the same
  # step ("retrieval/t->va/R@1") or of training ("loss"; lower is better).
  keep_best: Label = ""
  eval_every: Steps = 0  # steps between cheap evaluations; 0: none
  # skipped steps in a row until the run stops
  nonfinite_patience: Annotated[int, Range(1, 10**9, "steps")] = 5
  # steps at ln(batch) after warm-up until alarm
  collapse_patience: Annotated[int, Range(1, 10**9, "steps")] = 200
  # Seconds without a finished step until the run ends with the stacks of all
  # threads and status 76, to be started again; 0: never.
  watchdog_s: Annotated[float, Range(0.0, 1e7, "seconds")] = 1800.0
  # (first, last): profiler trace
  profile_steps: Annotated[tuple[Steps, ...], Items(only=(0, 2))] = ()
  # Folder of compiled programs, shared by restarts and hosts. "": as
  # JAX_COMPILATION_CACHE_DIR says, else on accelerators `compiled` beside a
  # remote workdir or ~/.cache/mico_jax/compiled.
  compilation_cache: Path = ""
  tensorboard: bool = True
  wandb: bool = False  # needs the `wandb` package


@dataclass(frozen=True)
class ParallelConfig:
  """The device mesh and what lies where on it."""

  # Devices along each axis of `mico_jax.axes.MESH_AXES`: data, fsdp, sequence,
  # tensor; -1: all that are left; axes not named here have one.
  mesh: Annotated[
    Mapping[Name, Annotated[int, Range(-1, 2**20, "devices")]], Items(0, 8)
  ] = field(default_factory=lambda: {"data": -1})
  # Mesh axis -> number of slices (parts joined by DCN) that it spans; counted
  # in `mesh` as well: 2 slices of 8 devices are mesh {"data": 16}, slices
  # {"data": 2}.
  slices: Annotated[Mapping[Name, Devices], Items(0, 8)] = field(
    default_factory=dict
  )
  rules: Annotated[str, Key("mico_jax.axes.RULES")] = "ddp"
  # Parts of the state that wait in the host's memory between updates:
  # "opt_state", "ema".
  offload: Annotated[
    tuple[Annotated[str, Choice("opt_state", "ema")], ...], Items(0, 2)
  ] = ()


@dataclass(frozen=True)
class EvaluationConfig:
  """What is measured at the end of training and by `mico-jax evaluate`."""

  source: Label = ""  # name of a data source; "": nothing is evaluated
  # What is measured: suites, and evaluators that are no part of them.
  suite: Annotated[
    str, Keys(("mico_jax.evaluation.SUITES", "mico_jax.evaluation.EVALUATORS"))
  ] = "retrieval"
  size: Count = 256  # samples of the gallery; 0: all
  batch_size: Rows = 64
  # Queries: text against each of these letter groups.
  groups: Groups = ()
  # top-k re-ranked with the matching head
  rerank: Annotated[int, Range(0, 10**6, "items")] = 0
  # "matching": by P(match) alone, as released; "both": by its log-odds plus
  # similarity over temperature.
  rerank_by: Annotated[str, Choice("matching", "both")] = "matching"
  captions: Count = 0  # samples captioned and scored with CIDEr
  questions: Count = 0  # samples asked one question each
  hard: Count = 0  # OmniWorld: galleries of eight nearly equal scenes
  # captions of a sample used as queries; 0: all
  texts_per_item: Annotated[int, Range(0, 10**6)] = 1
  # Retrieval between samples, right when their labels agree: "a:i"; "a:t":
  # from samples to the texts of samples.
  item_pairs: Annotated[
    tuple[Annotated[str, Text(3, 33, "pair such as a:i")], ...], Items(0, 64)
  ] = ()
  # Modalities that a sample may lack as long as it has another one of its
  # group: zeros stand for them, as in the official code for videos without
  # sound.
  silent: Names = ()
  label: Label = ""  # record field with the class of a sample
  classes: Path = ""  # file with one class name per line, in order of the label
  prompts: Path = ""  # file with one template per line, "{}" for the class
  probe_source: Label = ""  # data source a linear probe is trained on; "": none
  # Evaluator -> its own options, for those that have some.
  options: Annotated[Mapping[Name, Options], Items()] = field(
    default_factory=dict
  )
  # queries of each measurement shown in the page of results; 0: none
  examples: Annotated[int, Range(0, 1000, "queries")] = 6
  # resamples of the 95% interval
  bootstrap: Annotated[int, Range(0, 10**6, "resamples")] = 1000


MAX_BEAMS = 64  # of beam search


@dataclass(frozen=True)
class GenerationConfig:
  """How captions are written unless a caller says otherwise."""

  num_beams: Annotated[int, Range(1, MAX_BEAMS, "beams")] = 1  # 1: greedy
  # exponent of the length in a beam's score
  length_penalty: Annotated[float, Range(-10.0, 10.0)] = 1.0
  max_new_tokens: Tokens = 30
  # Nucleus sampling, with one beam: tokens are drawn from the most probable
  # ones, whose probabilities sum to this. 0: the most probable one.
  top_p: Fraction = 0.0
  # by which logits are divided before a token is drawn
  temperature: Annotated[float, Range(0.01, 100.0)] = 1.0
  seed: Seed = 0  # of the drawn tokens


@dataclass(frozen=True)
class StageConfig:
  """A part of the training with some fields of its own."""

  start: Steps = 0  # first step of the stage; it ends where the next one starts
  # Fields and values, as on the command line: "tasks.vast27m.steps=0". Which
  # fields: `mico_jax.config.stages`.
  set: Annotated[tuple[Annotated[str, Text(1, 4096)], ...], Items(0, 64)] = ()


@dataclass(frozen=True)
class Config:
  """A whole run."""

  name: Name = "run"
  seed: Seed = 0
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  objectives: ObjectivesConfig = ObjectivesConfig()
  tasks: Annotated[Mapping[Name, TaskConfig], Items(0, 256)] = field(
    default_factory=dict
  )
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  # Parts of the training that differ from what is said here.
  stages: Annotated[Mapping[Name, StageConfig], Items(0, 64)] = field(
    default_factory=dict
  )
  parallel: ParallelConfig = ParallelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  generation: GenerationConfig = GenerationConfig()
