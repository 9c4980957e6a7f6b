"""Data source of a folder prepared for Megatron Energon, over its tar files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.identity import tell
from mico_jax.data.sources.webdataset import WebDatasetSource
from mico_jax.data.storage import Storage
from mico_jax.modalities import MODALITIES, DecodeError

_META = ".nv-meta"
_IN_JSON = re.compile(r"json\[(\w+)\]")
_ENDING = re.compile(r"[\w.]+")


class EnergonSource(WebDatasetSource):
  """A folder of WebDataset tar files with `.nv-meta` of Megatron Energon.

  The shards of `split` are those of `split.yaml`. Of `dataset.yaml` the
  `field_map` is taken: modalities by their names, `caption` as the caption.
  Code that it names (`sample_loader`, `part_filter`) is refused.
  """

  kind: ClassVar = "energon"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the metadata, and indexes the shards of the split.

    Raises:
      ConfigError: if the folder has no metadata, or lacks the split.
    """
    self._where, self._files = f"data.sources.{name}", storage
    self._folder = os.path.join(config.path, _META)
    shards = self._shards_of(config)
    fields, captions = self._field_map(name)
    super().__init__(
      name,
      dataclasses.replace(
        config,
        path=",".join(os.path.join(config.path, s) for s in shards),
        fields={**fields, **config.fields},
        captions={**captions, **config.captions},
      ),
      storage,
    )

  def _yaml(self, file: str) -> dict[str, Any]:
    import yaml

    path = os.path.join(self._folder, file)
    try:
      content = yaml.safe_load(self._files.read(path))
    except (DecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
      text = " ".join(str(error).split())[:200]
      raise ConfigError(f"{self._where}.path: {path}: {text}") from error
    if not isinstance(content, dict):
      raise ConfigError(f"{self._where}.path: {path}: expected a mapping.")
    return content

  def _shards_of(self, config: SourceConfig) -> list[str]:
    """The shards of the split, relative to the folder."""
    content = self._yaml("split.yaml")
    parts = content.get("split_parts")
    if not isinstance(parts, dict):
      raise ConfigError(f"{self._where}.path: split.yaml has no split_parts.")
    names = [config.split] if config.split else list(parts)
    shards: list[str] = []
    for split in names:
      listed = parts.get(split)
      if not isinstance(listed, list) or not listed:
        raise ConfigError(
          f"{self._where}.split={split!r}: split.yaml has the splits "
          f"{', '.join(str(p) for p in parts)}."
        )
      shards += map(str, listed)
    if content.get("exclude"):
      raise ConfigError(
        f"{self._where}.path: split.yaml excludes {content['exclude']!r:.100}; "
        "write shards without these first."
      )
    for shard in shards:
      if os.path.isabs(shard) or ".." in shard.split("/"):
        raise ConfigError(
          f"{self._where}.path: the shard {shard!r:.80} leaves the folder."
        )
    return shards

  def _field_map(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Modality -> ending, and kind of caption -> field or ending."""
    if not os.path.exists(os.path.join(self._folder, "dataset.yaml")):
      return {}, {}
    content = self._yaml("dataset.yaml")
    for code in ("sample_loader", "part_filter"):
      if content.get(code):
        raise ConfigError(
          f"{self._where}.path: dataset.yaml names code ({code}="
          f"{content[code]!r:.60}), which is not run; use kind='webdataset' "
          "with `fields` and `captions`."
        )
    fields, captions, unused = {}, {}, []
    for field, value in (content.get("field_map") or {}).items():
      inner = _IN_JSON.fullmatch(str(value))
      modality = MODALITIES.get(str(field))
      if field in ("caption", "text"):
        ending = inner[1] if inner else str(value)
        if ending != "txt":  # the usual caption
          captions["omni"] = ending
      elif modality is None or inner or not _ENDING.fullmatch(str(value)):
        unused.append(f"{field}: {value}")
      else:
        fields[str(field)] = str(value)
    if unused:
      tell(
        f"source {name!r}: fields of dataset.yaml that are no modality keep "
        f"their names in the samples: {json.dumps(unused)[:200]}."
      )
    return fields, captions
