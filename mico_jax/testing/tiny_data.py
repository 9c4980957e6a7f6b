"""Tiny sets of files and configs over them, for tests."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mico_jax.config import (
  Config,
  DataConfig,
  InputConfig,
  ModelConfig,
  SourceConfig,
  TaskConfig,
  TokenizerConfig,
  TrainConfig,
  VisionConfig,
)


def png(value: int, size: int = 32) -> bytes:
  """A grey PNG of one value."""
  out = io.BytesIO()
  frame = np.full((size, size, 3), value % 256, np.uint8)
  Image.fromarray(frame).save(out, "png")
  return out.getvalue()


def wav(samples: int = 4000) -> bytes:
  """A quiet tone at 16 kHz."""
  out = io.BytesIO()
  wave = 0.1 * np.sin(np.arange(samples) / 9)
  soundfile.write(out, wave, 16000, format="WAV")
  return out.getvalue()


def write_tar(
  path: pathlib.Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]
) -> pathlib.Path:
  """A tar file of these members, in this order; returns its path."""
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name) if isinstance(name, str) else name
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def write_manifest(
  folder: pathlib.Path,
  n: int = 8,
  *,
  name: str = "manifest.jsonl",
  **extra: Sequence[Any],
) -> pathlib.Path:
  """A manifest of n samples: png image, wav in a tar, caption, label.

  Args:
    folder: where everything is written.
    n: number of samples; image i has grey value 20 i.
    name: of the manifest.
    **extra: field -> its n values, replacing or adding to the usual ones.

  Returns:
    The path of the manifest.
  """
  folder.mkdir(parents=True, exist_ok=True)
  write_tar(
    folder / "sound.tar",
    [(f"s{i}.wav", wav(2000 + 100 * i)) for i in range(n)],
  )
  lines = []
  for i in range(n):
    (folder / f"{i}.png").write_bytes(png(20 * i))
    record: dict[str, Any] = {
      "id": f"s{i}",
      "image": f"{i}.png",
      "audio": f"sound.tar:s{i}.wav",
      "caption": f"a small cube {i}",
      "label": i % 2,
      "split": "train",
    }
    for key, values in extra.items():
      record[key] = values[i]
    lines.append(json.dumps(record))
  (folder / name).write_text("\n".join(lines) + "\n")
  return folder / name


def config_of(
  *,
  steps: int = 12,
  batch: int = 4,
  groups: tuple[str, ...] = ("ti", "tia"),
  data: Mapping[str, Any] | None = None,
  **sources: SourceConfig,
) -> Config:
  """A config over sources with one contrastive task "one", 32 pixels."""
  return Config(
    seed=1,
    model=ModelConfig(vision=VisionConfig(image_size=32, patch_size=16)),
    data=DataConfig(
      sources=sources,
      inputs={"video": InputConfig(frames=2)},
      tokenizer=TokenizerConfig(kind="omniworld"),
      **(data or {}),
    ),
    tasks={
      "one": TaskConfig(
        sources={name: 1 for name in sources},
        batch_size=batch,
        objectives={"contrastive": groups},
      )
    },
    train=TrainConfig(steps=steps),
  )


def manifest_source(path: pathlib.Path | str, **options: Any) -> SourceConfig:
  """A source of kind manifest."""
  return SourceConfig(kind="manifest", path=str(path), **options)
