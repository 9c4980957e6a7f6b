"""Fields of the loop, of what it measures, and `Config`: a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mico_jax.config.data import DataConfig
from mico_jax.config.model import ModelConfig
from mico_jax.config.objectives import ObjectivesConfig, TaskConfig


@dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer, schedule and parameter groups."""

  name: str = "adamw"  # key of `mico_jax.train.optimizer.OPTIMIZERS`
  learning_rate: float = 1e-4
  b1: float = 0.9
  b2: float = 0.98
  eps: float = 1e-6
  weight_decay: float = 0.01
  # Paths (regex, re.search on "a/b/c") without weight decay.
  no_decay: tuple[str, ...] = (r"bias$", r"/scale\d*$", r"temperature$")
  schedule: str = "linear"  # "linear" | "cosine" | "constant"
  warmup: float = 0.1  # fraction of the steps if < 1, else steps
  end_fraction: float = 0.0  # of the learning rate at the last step
  clip_norm: float = 2.0  # global gradient norm; 0: none
  # Path regex -> factor on the learning rate; 0 freezes. First match wins.
  lr_multipliers: Mapping[str, float] = field(default_factory=dict)
  freeze: tuple[str, ...] = ()  # path regexes without update
  layer_decay: float = 1.0  # per block of the shared encoder, from the top
  ema: float = 0.0  # decay of the averaged weights; 0: none
  # Of moments and the like: "bfloat16" halves them, rounded at random (see
  # train.narrow); name="adafactor" keeps factors of them instead.
  state_dtype: str = "float32"
  lora_rank: int = 0  # > 0: train low-rank deltas of `lora_targets` only
  lora_alpha: float = 16.0
  lora_targets: tuple[str, ...] = (r"attn/(qkv|proj)/kernel$",)


@dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  steps: int = 1000
  patch_dropout: float = 0.0  # fraction of patch tokens dropped in training
  # A step's batch in so many parts, for activations that do not fit at once:
  # the same gradient, by cached embeddings where rows are compared.
  micro_batches: int = 1
  log_every: int = 10  # steps
  checkpoint_every: int = 500  # steps; the last step always saves
  keep: int = 3  # newest checkpoints kept
  # Metric whose best checkpoint is kept beside: of the evaluation at the same
  # step ("retrieval/t->va/R@1") or of training ("loss"; lower is better).
  keep_best: str = ""
  eval_every: int = 0  # steps between cheap evaluations; 0: none
  nonfinite_patience: int = 5  # skipped steps in a row until the run stops
  collapse_patience: int = 200  # steps at ln(batch) after warm-up until alarm
  # Seconds without a finished step until the run ends with the stacks of all
  # threads and status 76, to be started again; 0: never.
  watchdog_s: float = 1800.0
  profile_steps: tuple[int, ...] = ()  # (first, last): profiler trace
  # Folder of compiled programs, shared by restarts and hosts; "": as JAX's own
  # setting (JAX_COMPILATION_CACHE_DIR) says.
  compilation_cache: str = ""
  tensorboard: bool = True
  wandb: bool = False  # needs the `wandb` package


@dataclass(frozen=True)
class ParallelConfig:
  """The device mesh and what lies where on it."""

  # Devices along each axis of `mico_jax.axes.MESH_AXES`: data, fsdp, sequence,
  # tensor; -1: all that are left; axes not named here have one.
  mesh: Mapping[str, int] = field(default_factory=lambda: {"data": -1})
  # Mesh axis -> number of slices (parts joined by DCN) that it spans; counted
  # in `mesh` as well: 2 slices of 8 devices are mesh {"data": 16}, slices
  # {"data": 2}.
  slices: Mapping[str, int] = field(default_factory=dict)
  rules: str = "ddp"  # key of `mico_jax.axes.RULES`
  # Parts of the state that wait in the host's memory between updates:
  # "opt_state", "ema".
  offload: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationConfig:
  """What is measured at the end of training and by `mico-jax evaluate`."""

  source: str = ""  # name of a data source; "": nothing is evaluated
  suite: str = "retrieval"  # key of `mico_jax.evaluation.SUITES`
  size: int = 256  # samples of the gallery; 0: all
  batch_size: int = 64
  # Queries: text against each of these letter groups.
  groups: tuple[str, ...] = ()
  rerank: int = 0  # top-k re-ranked with the matching head
  captions: int = 0  # samples captioned and scored with CIDEr
  questions: int = 0  # samples asked one question each
  hard: int = 0  # OmniWorld: galleries of eight nearly equal scenes
  texts_per_item: int = 1  # captions of a sample used as queries; 0: all
  # Retrieval between samples, right when their labels agree: "a:i"; "a:t":
  # from samples to the texts of samples.
  item_pairs: tuple[str, ...] = ()
  label: str = ""  # record field with the class of a sample
  classes: str = ""  # file with one class name per line, in order of the label
  prompts: str = ""  # file with one template per line, "{}" for the class
  probe_source: str = ""  # data source a linear probe is trained on; "": none
  bootstrap: int = 1000  # resamples of the 95% interval


@dataclass(frozen=True)
class GenerationConfig:
  """How captions are written unless a caller says otherwise."""

  num_beams: int = 1  # 1: greedy
  length_penalty: float = 1.0  # exponent of the length in a beam's score
  max_new_tokens: int = 30


@dataclass(frozen=True)
class Config:
  """A whole run."""

  name: str = "run"
  seed: int = 0
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  objectives: ObjectivesConfig = ObjectivesConfig()
  tasks: Mapping[str, TaskConfig] = field(default_factory=dict)
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  parallel: ParallelConfig = ParallelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  generation: GenerationConfig = GenerationConfig()
