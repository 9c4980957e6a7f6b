"""Every field of a run, with its default and unit, as frozen dataclasses.

A config file (`configs/*.py`) is an `ml_collections` file over the `ConfigDict`
of these dataclasses (`to_config_dict`); it is locked after parsing and turned
back by `from_config_dict`, so a typo or a wrong type fails before any device is
touched. Importing this module needs only the standard library: models and
kernels use these types where `ml_collections` is not installed.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import pathlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

if typing.TYPE_CHECKING:
  import ml_collections

T = TypeVar("T")


class ConfigError(ValueError):
  """A user's mistake in a config or on the command line."""


# --------------------------------------------------------------------- model
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


# ---------------------------------------------------------------------- data
@dataclass(frozen=True)
class AudioConfig:
  """Waveform to log-mel slices (Kaldi filterbank)."""

  sample_rate: int = 16000  # Hz
  window_ms: float = 25.0
  hop_ms: float = 10.0
  mel_bins: int = 0  # 0: the encoder's image_size (no resize)
  mean: float = 15.41663  # of the log-mel values; the released constants
  std: float = 6.55582
  max_seconds: float = 600.0  # of sound and of video; what is longer is cut
  channel: str = "first"  # of several channels: "first" | "mean"


@dataclass(frozen=True)
class InputConfig:
  """How one modality reaches the encoder."""

  frames: int = 1  # frames or slices per sample
  mode: str = ""  # named preprocessing in training; "": the modality's default
  eval_mode: str = ""  # "": the modality's deterministic default for `mode`
  # Share of training samples that show nothing here (modality dropout), so that
  # joint features do not rest on one modality alone.
  dropout: float = 0.0


@dataclass(frozen=True)
class TokenizerConfig:
  """Text to ids."""

  kind: str = "wordpiece"  # "wordpiece" | "sentencepiece" | "omniworld"
  # Vocabulary file or SentencePiece model; kind "sentencepiece" without one
  # trains a model on the captions of the run.
  path: str = ""
  vocab_size: int = 512  # upper limit of a SentencePiece model trained here
  # Token counts per caption kind, special tokens included.
  max_length: Mapping[str, int] = field(
    default_factory=lambda: {
      "default": 40,
      "omni": 70,
      "subtitle": 70,
      "question": 30,
      "answer": 10,
    }
  )


@dataclass(frozen=True)
class SourceConfig:
  """Where samples come from."""

  kind: str = "omniworld"  # key of `mico_jax.data.sources.SOURCES`
  path: str = ""  # manifest, shard pattern or TFDS directory
  # Folder that paths of a manifest may not leave; "": the manifest's folder.
  root: str = ""
  split: str = "train"
  where: Mapping[str, Any] = field(default_factory=dict)  # field -> value(s)
  # Record field of each modality / caption kind / label; unset: same name.
  fields: Mapping[str, str] = field(default_factory=dict)
  captions: Mapping[str, str] = field(default_factory=dict)
  depth_unit: str = ""  # "metre" | "millimetre" | "relative"
  size: int = 0  # OmniWorld: scenes of the split; others: 0 = all
  seed: int = 0  # OmniWorld
  version: str = "v1"  # OmniWorld
  # OmniWorld: facts that explicit negatives change; (): every stated one.
  negative_facts: tuple[str, ...] = ()
  count: int = 0  # samples found; filled when the run starts
  sha256: str = ""  # of the index; filled when the run starts


@dataclass(frozen=True)
class DataConfig:
  """Sources and how they are read."""

  sources: Mapping[str, SourceConfig] = field(default_factory=dict)
  inputs: Mapping[str, InputConfig] = field(default_factory=dict)
  audio: AudioConfig = AudioConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  num_negatives: int = 0  # explicit text negatives per sample and group (K)
  num_threads: int = 2  # decoding threads
  # MiB of decoded media kept in memory by each process, for sets that are read
  # many times; 0: none.
  cache_mib: int = 0
  num_workers: int = 0  # processes; 0: threads only
  prefetch: int = 8  # steps read ahead
  timeout: float = 60.0  # seconds until a stalled decoder is an error
  max_bad_fraction: float = 0.01  # of samples; the run stops beyond it
  max_pixels: int = 120_000_000  # larger images are refused, not decoded
  cache_gb: float = 4.0  # local cache of remote shards


# ---------------------------------------------------------------- objectives
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


# ------------------------------------------------------------------ training
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


# ---------------------------------------------------------------- conversion
def to_dict(config: Any) -> dict[str, Any]:
  """A plain nested dict of a config dataclass (tuples stay tuples)."""

  def convert(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
      return {
        f.name: convert(getattr(value, f.name))
        for f in dataclasses.fields(value)
      }
    if isinstance(value, Mapping):
      return {k: convert(v) for k, v in value.items()}
    return value

  return convert(config)


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
  """The `ConfigDict` that config files edit."""
  import ml_collections

  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def to_json(config: Config) -> str:
  """Stable JSON text of a config: what checkpoints store and hash."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True)


def _check(value: Any, hint: Any, path: str) -> Any:
  """Returns `value` as the type `hint` asks for, or raises ConfigError."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (types.UnionType, typing.Union):
    if value is None and type(None) in args:
      return None
    return _check(value, next(a for a in args if a is not type(None)), path)
  if dataclasses.is_dataclass(hint):
    return _build(typing.cast(type, hint), value, path)
  if origin is Mapping:
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path}: expected a mapping, got {value!r}.")
    return {str(k): _check(v, args[1], f"{path}.{k}") for k, v in value.items()}
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ConfigError(f"{path}: expected a tuple, got {value!r}.")
    return tuple(
      _check(v, args[0], f"{path}[{i}]") for i, v in enumerate(value)
    )
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ConfigError(
      f"{path}: expected {hint.__name__}, got {value!r} "
      f"({type(value).__name__})."
    )
  return value


def _build(cls: type[T], values: Any, path: str) -> T:
  if dataclasses.is_dataclass(values):
    values = to_dict(values)
  if not isinstance(values, Mapping):
    raise ConfigError(
      f"{path or 'config'}: expected a mapping, got {values!r}."
    )
  hints = typing.get_type_hints(cls)
  unknown = [k for k in values if k not in hints]
  if unknown:
    key = str(unknown[0])
    close = difflib.get_close_matches(key, hints, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
      f"unknown config key {f'{path}.{key}'.lstrip('.')!r}.{hint} "
      f"Known keys here: {', '.join(sorted(hints))}."
    )
  return cls(
    **{
      k: _check(v, hints[k], f"{path}.{k}".lstrip("."))
      for k, v in values.items()
    }
  )


def from_dict(values: Mapping[str, Any], cls: type[T] = Config) -> T:
  """Builds a checked dataclass from nested dicts; missing keys take defaults.

  Raises:
    ConfigError: naming the first unknown key or wrong type.
  """
  return _build(cls, values, "")


def from_config_dict(values: ml_collections.ConfigDict) -> Config:
  """Turns the `ConfigDict` of a config file into a checked `Config`."""
  return from_dict(values.to_dict())


# ------------------------------------------------------------- loading files
def config_dirs() -> list[pathlib.Path]:
  """Folders searched for named configs: the packaged one and a checkout's."""
  here = pathlib.Path(__file__).resolve().parent
  found = [here / "configs", here.parent / "configs"]
  return [d for d in found if d.is_dir()]


def find(name: str) -> pathlib.Path:
  """Path of a config given by file name or packaged name ("demo").

  Raises:
    ConfigError: listing the packaged names if there is no such config.
  """
  path = pathlib.Path(name)
  if path.suffix == ".py":
    if not path.is_file():
      raise ConfigError(f"no config file {name!r}.")
    return path
  for folder in config_dirs():
    if (folder / f"{name}.py").is_file():
      return folder / f"{name}.py"
  known = sorted(
    str(p.relative_to(d).with_suffix(""))
    for d in config_dirs()
    for p in d.rglob("*.py")
    if p.stem not in ("__init__", "base")
  )
  raise ConfigError(
    f"no config {name!r}. Packaged configs: {', '.join(known)}; "
    "or give the path of a .py file."
  )


def parse_override(text: str) -> tuple[str, Any]:
  """Splits "train.steps=200" into key and value (a Python literal or text)."""
  key, sep, raw = text.partition("=")
  if not sep:
    raise ConfigError(f"--config.{text}: write --config.{text}=VALUE.")
  try:
    return key, ast.literal_eval(raw)
  except (ValueError, SyntaxError):
    return key, {"true": True, "false": False}.get(raw.lower(), raw)


def override(config: Config, overrides: Sequence[str]) -> Config:
  """Applies "a.b.c=value" overrides to a config.

  Raises:
    ConfigError: for an unknown key or a value of the wrong type.
  """
  values = to_dict(config)
  for text in overrides:
    key, value = parse_override(text)
    *parents, leaf = key.split(".")
    node = values
    for i, part in enumerate(parents):
      if not isinstance(node.get(part), dict):
        known = ", ".join(sorted(node))
        raise ConfigError(
          f"unknown config key {'.'.join(parents[: i + 1])!r}. "
          f"Known keys here: {known}."
        )
      node = node[part]
    node[leaf] = value
  return from_dict(values)


def _get_config(path: pathlib.Path) -> Callable[..., Any]:
  """The function `get_config` of a config file.

  Raises:
    ConfigError: if the file cannot be run or has no such function.
  """
  spec = importlib.util.spec_from_file_location(
    f"mico_jax_config_{path.stem}", path
  )
  if spec is None or spec.loader is None:
    raise ConfigError(f"cannot read config file {str(path)!r}.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ConfigError(f"{path}, line {error.lineno}: {error.msg}.") from error
  except ImportError as error:
    raise ConfigError(f"{path}: {error}.") from error
  if not hasattr(module, "get_config"):
    raise ConfigError(f"{path}: has no function get_config().")
  return module.get_config


def load(
  name: str, overrides: Sequence[str] = (), *, arg: str | None = None
) -> Config:
  """Loads a config file or packaged config and applies overrides.

  Args:
    name: path of a .py file or packaged name; "name:arg" passes `arg` to its
      `get_config`.
    overrides: texts of the form "train.steps=200".
    arg: argument of `get_config`; overrides the one in `name`.

  Raises:
    ConfigError: for a missing file, an unknown key or a wrong type.
  """
  base, sep, suffix = name.partition(":")
  if sep and arg is None:
    arg = suffix
  path = find(base)
  get_config = _get_config(path)
  if arg is not None and not inspect.signature(get_config).parameters:
    raise ConfigError(f"{name!r}: get_config of {path} takes no argument.")
  values = get_config() if arg is None else get_config(arg)
  if not hasattr(values, "to_dict"):
    raise ConfigError(
      f"{path}: get_config() must return a ConfigDict, such as "
      f"mico_jax.config.to_config_dict(Config()); got {type(values).__name__}."
    )
  return override(from_config_dict(values), overrides)
