"""Fields of the data: sources, inputs, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from mico_jax.config.fields import (
  Choice,
  Count,
  Fraction,
  Frames,
  Items,
  Key,
  Label,
  Mode,
  Name,
  NameMap,
  Names,
  Nested,
  Options,
  Path,
  Range,
  Rate,
  Scalars,
  Seed,
  Text,
  Tokens,
)


@dataclass(frozen=True)
class AudioConfig:
  """Waveform to log-mel slices (Kaldi filterbank)."""

  sample_rate: Annotated[int, Range(1000, 768000, "Hz")] = 16000  # Hz
  window_ms: Annotated[float, Range(0.1, 10_000.0, "ms")] = 25.0
  hop_ms: Annotated[float, Range(0.1, 10_000.0, "ms")] = 10.0
  # 0: the encoder's image_size (no resize)
  mel_bins: Annotated[int, Range(0, 8192)] = 0
  # of the log-mel values; the official constants
  mean: Annotated[float, Range(-1e3, 1e3)] = 15.41663
  std: Annotated[float, Range(1e-3, 1e3)] = 6.55582
  # of sound and of video; what is longer is cut
  max_seconds: Annotated[float, Range(0.01, 86_400.0, "seconds")] = 600.0
  # of several channels: "first" | "mean"
  channel: Annotated[str, Choice("first", "mean")] = "first"


@dataclass(frozen=True)
class InputConfig:
  """How one modality reaches the encoder."""

  frames: Frames = 1  # frames or slices per sample
  mode: Mode = ""  # named preprocessing in training; "": the modality's default
  eval_mode: Mode = ""  # "": the modality's deterministic default for `mode`
  # Share of training samples that show nothing here (modality dropout), so that
  # joint features do not rest on one modality alone.
  dropout: Rate = 0.0
  # Which frames or slices: "chunk", one of each of `frames` equal parts; "fps",
  # one every 1 / `fps` seconds; "dense", consecutive ones, `stride` apart.
  # Training draws where, evaluation takes the middle.
  sampling: Annotated[str, Key("mico_jax.modalities.sampling.SAMPLINGS")] = (
    "chunk"
  )
  fps: Annotated[float, Range(0.001, 1000.0, "frames per second")] = 1.0
  stride: Annotated[int, Range(1, 1024, "frames")] = 1
  # Training alone: JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the
  # shorter side keeps this many times image_size; 0: always whole. 1.25 suits
  # crops of 80-100%; smaller crops are enlarged from fewer pixels.
  draft: Annotated[float, Range(0.0, 16.0, "image sizes")] = 0.0


@dataclass(frozen=True)
class TokenizerConfig:
  """Text to ids."""

  # "wordpiece" | "sentencepiece" | "omniworld"
  kind: Annotated[str, Key("mico_jax.data.tokenizer.TOKENIZERS")] = "wordpiece"
  # Vocabulary file or SentencePiece model; kind "sentencepiece" without one
  # trains a model on the captions of the run.
  path: Path = ""
  # upper limit of a SentencePiece model trained here
  vocab_size: Annotated[int, Range(8, 2**20, "tokens")] = 512
  # Token counts per caption kind, special tokens included.
  max_length: Annotated[Mapping[Name, Tokens], Items(1, 64)] = field(
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

  kind: Annotated[str, Key("mico_jax.data.sources.SOURCES")] = "omniworld"
  path: Path = ""  # manifest, shard pattern or TFDS directory
  # Folder that paths of a manifest may not leave; "": the manifest's folder.
  root: Path = ""
  # Of samples or folders that say theirs; "": all. Tar and ArrayRecord files
  # are not filtered by it: name those of the split in `path`.
  split: Label = "train"
  # field -> value(s)
  where: Annotated[Mapping[Name, Annotated[Any, Scalars()]], Items()] = field(
    default_factory=dict
  )
  # What a sample must have to be read: modalities, "caption:KIND", "caption".
  # How many are left out is told when the source is opened.
  require: Names = ()
  # WebDataset: keys end at the "first" or the "last" dot of a member's name.
  key_dot: Annotated[str, Choice("first", "last")] = "first"
  # Modality -> record field, or ending of a member; unset: its own name. A
  # field that no sample has leaves the modality out, where one of its name
  # means something else.
  fields: NameMap = field(default_factory=dict)
  # Kind of caption -> record field; unset: by its usual names.
  captions: NameMap = field(default_factory=dict)
  # "metre" | "millimetre" | "relative"
  depth_unit: Annotated[str, Choice("", "metre", "millimetre", "relative")] = ""
  # Modality -> unit of its values, such as {"thermal": "kelvin"}, where its
  # files do not say it; docs/modalities.md lists the units.
  units: Annotated[Mapping[Name, Label], Items(0, 64)] = field(
    default_factory=dict
  )
  # Modality -> samples per second of its series, where files do not say it.
  rates: Annotated[
    Mapping[Name, Annotated[float, Range(1e-9, 1e9, "Hz")]], Items(0, 64)
  ] = field(default_factory=dict)
  # Modality -> names of the channels of its series, in the order of the arrays,
  # joined by commas; of tables the columns that are read, of spectra the
  # wavelengths in nm.
  channels: Annotated[
    Mapping[Name, Annotated[str, Text(1, 65_536, "names")]], Items(0, 64)
  ] = field(default_factory=dict)
  # Of clips that are stored as frames without times, for sampling "fps"; 0:
  # unknown.
  frame_rate: Annotated[float, Range(0.0, 1000.0, "frames per second")] = 0.0
  size: Count = 0  # OmniWorld: scenes of the split; others: 0 = all
  # Part of these that is read: a share if < 1, else a number of samples; 0:
  # all. Parts of the same `take_seed` are nested; with `take_by`, the record
  # field of the category, each category gives the same share.
  take: Annotated[float, Range(0.0, 1e12, "share or samples")] = 0.0
  # Leaves out as much before that: skip=0.8 reads what take=0.8 does not.
  skip: Annotated[float, Range(0.0, 1e12, "share or samples")] = 0.0
  take_by: Label = ""
  take_seed: Seed = 0
  seed: Seed = 0  # OmniWorld
  # OmniWorld: "v2" adds sensors to the scenes of "v1"
  version: Annotated[str, Choice("v1", "v2")] = "v1"
  # OmniWorld: facts that explicit negatives change; (): every stated one.
  negative_facts: Names = ()
  options: Options = field(default_factory=dict)  # of the kind itself
  count: Count = 0  # samples found; filled when the run starts
  # of the index; filled when the run starts
  sha256: Annotated[str, Text(0, 64, "SHA-256")] = ""


@dataclass(frozen=True)
class DataConfig:
  """Sources and how they are read."""

  sources: Annotated[Mapping[Name, SourceConfig], Items()] = field(
    default_factory=dict
  )
  inputs: Annotated[Mapping[Name, InputConfig], Items(0, 64)] = field(
    default_factory=dict
  )
  # Modality of tables -> its columns: their names with quantiles or categories
  # of the training part, see `mico_jax.modalities.columns`.
  columns: Annotated[Mapping[Name, Annotated[Any, Nested()]], Items(0, 64)] = (
    field(default_factory=dict)
  )
  audio: AudioConfig = AudioConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  # Lengths in tokens: the texts of a batch all fit one of these, and are padded
  # to it and no further; longer ones, and without any all, to
  # `tokenizer.max_length`. See `mico_jax.data.text_lengths`.
  text_buckets: Annotated[tuple[Tokens, ...], Items(0, 16)] = ()
  # explicit text negatives per sample and group (K)
  num_negatives: Annotated[int, Range(0, 1024)] = 0
  num_threads: Annotated[int, Range(1, 1024, "threads")] = 2  # decoding threads
  # MiB of decoded media kept in memory by each process, for sets that are read
  # many times; 0: none.
  cache_mib: Annotated[int, Range(0, 2**24, "MiB")] = 0
  # processes; 0: threads only
  num_workers: Annotated[int, Range(0, 1024, "processes")] = 0
  prefetch: Annotated[int, Range(1, 4096, "steps")] = 8  # steps read ahead
  # seconds until a stalled decoder is an error
  timeout: Annotated[float, Range(0.001, 86_400.0, "seconds")] = 60.0
  max_bad_fraction: Fraction = 0.01  # of samples; the run stops beyond it
  # larger images are refused, not decoded
  max_pixels: Annotated[int, Range(1, 10**10, "pixels")] = 120_000_000
  # larger files (members, arrays) are refused, not read: 4 GiB
  max_file_bytes: Annotated[int, Range(1, 2**50, "bytes")] = 4_294_967_296
  # local cache of remote shards; of sets that have no room in it a fixed part
  # is kept, and the rest is read again in each epoch, past the disk
  cache_gb: Annotated[float, Range(0.0, 1e6, "GB")] = 4.0
