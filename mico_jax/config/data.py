"""Fields of the data: sources, inputs, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AudioConfig:
  """Waveform to log-mel slices (Kaldi filterbank)."""

  sample_rate: int = 16000  # Hz
  window_ms: float = 25.0
  hop_ms: float = 10.0
  mel_bins: int = 0  # 0: the encoder's image_size (no resize)
  mean: float = 15.41663  # of the log-mel values; the released constants
  std: float = 6.55582
  max_seconds: float = 600.0  # longer files are cut, never read whole
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
