"""The same few samples written in the format of every kind of source.

Tests that hold for all sources run over `WRITERS`.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import pathlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax.config import SourceConfig
from mico_jax.data.packed import pack
from mico_jax.testing.tiny_data import png, write_tar


@dataclasses.dataclass(frozen=True)
class Sample:
  """One sample with a picture.

  Attributes:
    id: of the sample; part of the name of its file.
    data: content of the picture; None: the file is missing, the cell null.
    captions: its texts.
    label: its class.
    suffix: type of the file.
    extra: further fields.
  """

  id: str
  data: bytes | None
  captions: tuple[str, ...] = ("a small cube",)
  label: int = 0
  suffix: str = ".png"
  extra: tuple[tuple[str, Any], ...] = ()

  @property
  def caption(self) -> Any:
    """The text, or the list of texts; None without any."""
    if len(self.captions) == 1:
      return self.captions[0]
    return list(self.captions) or None

  @property
  def fields(self) -> dict[str, Any]:
    """The texts, label and further fields."""
    return {
      "id": self.id,
      "caption": self.caption,
      "label": self.label,
      **dict(self.extra),
    }


def samples(n: int = 8) -> list[Sample]:
  """Samples s0, s1, ... of two classes; picture i has grey value 20 i."""
  return [
    Sample(f"s{i}", png(20 * i), (f"a small cube {i}",), i % 2)
    for i in range(n)
  ]


def _files(folder: pathlib.Path, rows: Sequence[Sample]) -> list[str]:
  """Writes the pictures; their names."""
  folder.mkdir(parents=True, exist_ok=True)
  names = []
  for row in rows:
    name = f"{row.id}{row.suffix}"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if row.data is not None:
      path.write_bytes(row.data)
    names.append(name)
  return names


def _manifest(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  names = _files(folder, rows)
  lines = [
    json.dumps({**r.fields, "image": n})
    for r, n in zip(rows, names, strict=True)
  ]
  (folder / "m.jsonl").write_text("\n".join(lines))
  return SourceConfig(kind="manifest", path=str(folder / "m.jsonl"))


def _members(rows: Sequence[Sample]) -> list[tuple[str, bytes]]:
  members = []
  for row in rows:
    if row.data is not None:
      members.append((f"{row.id}{row.suffix}", row.data))
    fields = {k: v for k, v in row.fields.items() if v is not None}
    members.append((f"{row.id}.json", json.dumps(fields).encode()))
  return members


def _webdataset(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  folder.mkdir(parents=True, exist_ok=True)
  half = (len(rows) + 1) // 2
  for i, part in enumerate((rows[:half], rows[half:])):
    if part:
      write_tar(folder / f"x-{i}.tar", _members(part))
  return SourceConfig(kind="webdataset", path=str(folder / "x-*.tar"))


def _energon(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  import yaml

  _webdataset(folder, rows)
  meta = folder / ".nv-meta"
  meta.mkdir()
  shards = sorted(p.name for p in folder.glob("*.tar"))
  parts = {"split_parts": {"train": shards, "val": []}, "exclude": []}
  (meta / "split.yaml").write_text(yaml.safe_dump(parts))
  fields = {"field_map": {"image": "png", "caption": "json[caption]"}}
  if {r.suffix for r in rows} == {".png"}:
    (meta / "dataset.yaml").write_text(yaml.safe_dump(fields))
  return SourceConfig(kind="energon", path=str(folder))


def _array_record(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  from array_record.python import array_record_module

  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "x.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for row in rows:
    media = {} if row.data is None else {"image": row.data}
    writer.write(pack(row.id, row.fields, media))
  writer.close()
  return SourceConfig(kind="array_record", path=str(path))


def _imagefolder(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  _files(folder / "train", rows)
  lines = [
    json.dumps({**row.fields, "file_name": f"{row.id}{row.suffix}"})
    for row in rows
  ]
  (folder / "train" / "metadata.jsonl").write_text("\n".join(lines))
  return SourceConfig(kind="imagefolder", path=str(folder))


def _grouped(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  for name, data in _members(rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return SourceConfig(kind="files", path=str(folder))


def _csv(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  names = _files(folder, rows)
  extra = sorted({k for r in rows for k, _ in r.extra})
  with open(folder / "set.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "photo", "caption", "label", *extra])
    for row, name in zip(rows, names, strict=True):
      more = [dict(row.extra).get(k, "") for k in extra]
      for text in row.captions or ("",):
        writer.writerow([row.id, name, text, row.label, *more])
  return SourceConfig(
    kind="csv", path=str(folder / "set.csv"), fields={"image": "photo"}
  )


def _coco(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  names = _files(folder / "val2017", rows)
  images, annotations = [], []
  for i, (row, name) in enumerate(zip(rows, names, strict=True)):
    image = {"id": row.id, "file_name": name, "label": row.label}
    images.append({**image, **dict(row.extra)})
    for j, text in enumerate(row.captions):
      annotations.append(
        {"id": 1000 * i + j, "image_id": row.id, "caption": text}
      )
  (folder / "annotations").mkdir()
  path = folder / "annotations" / "captions_val2017.json"
  content = {"images": images, "annotations": annotations}
  path.write_text(json.dumps(content))
  return SourceConfig(
    kind="coco",
    path=str(path),
    root="..",
    options={"images": "../val2017"},
  )


def _annotations(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  names = _files(folder, rows)
  items = [
    {
      "id": row.id,
      "sentences": [{"raw": text} for text in row.captions],
      "label": row.label,
      "file": name,
      **dict(row.extra),
    }
    for row, name in zip(rows, names, strict=True)
  ]
  (folder / "set.json").write_text(json.dumps({"images": items}))
  return SourceConfig(
    kind="annotations",
    path=str(folder),
    options={
      "table": {"file": ("set.json",), "rows": "images[]"},
      "id": "{id}",
      "texts": ("sentences[].raw",),
      "label": "{label}",
      "files": {"image": ("{file}",)},
    },
  )


def _vast(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  names = _files(folder, rows)
  items = [
    {
      "clip_id": row.id,
      "url": "https://example.org/watch",
      "clip_span": ["00:00:33.0", "00:00:38.7"],
      "vast_cap": row.caption,
      "label": row.label,
      "file": name,
      **dict(row.extra),
    }
    for row, name in zip(rows, names, strict=True)
  ]
  (folder / "annotations.json").write_text(json.dumps(items))
  return SourceConfig(
    kind="vast",
    path=str(folder / "annotations.json"),
    fields={"image": "file"},
    options={"files": {}},
  )


def arrow_table(rows: Sequence[Sample]) -> Any:
  """A pyarrow.Table as Hugging Face datasets makes it."""
  import pyarrow as pa

  picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  columns = {
    "id": pa.array([r.id for r in rows], pa.string()),
    "image": pa.array(
      [
        None if r.data is None else {"bytes": r.data, "path": None}
        for r in rows
      ],
      picture,
    ),
    "caption": pa.array([list(r.captions) for r in rows]),
    "label": pa.array([r.label for r in rows], pa.int64()),
  }
  for name in sorted({k for r in rows for k, _ in r.extra}):
    columns[name] = pa.array([dict(r.extra).get(name) for r in rows])
  features = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cube", "ball"]},
  }
  text = json.dumps({"info": {"features": features}})
  return pa.table(columns).replace_schema_metadata({"huggingface": text})


def _parquet(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  import pyarrow.parquet as pq

  folder.mkdir(parents=True, exist_ok=True)
  half = (len(rows) + 1) // 2
  for i, part in enumerate((rows[:half], rows[half:])):
    if part:
      path = folder / f"train-{i}.parquet"
      pq.write_table(arrow_table(part), path, row_group_size=3)
  return SourceConfig(kind="parquet", path=str(folder / "train-*.parquet"))


def _hf_disk(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  import pyarrow as pa

  folder.mkdir(parents=True, exist_ok=True)
  table = arrow_table(rows)
  name = "data-00000-of-00001.arrow"
  with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
    writer.write_table(table, max_chunksize=3)
  state = {"_data_files": [{"filename": name}], "_split": "train"}
  (folder / "state.json").write_text(json.dumps(state))
  return SourceConfig(kind="hf_disk", path=str(folder))


def mds_shard(
  folder: pathlib.Path,
  number: int,
  columns: Mapping[str, str],
  sizes: Sequence[int | None],
  rows: Sequence[Sequence[bytes]],
) -> dict[str, Any]:
  """Writes an MDS shard; what `index.json` says of it.

  Args:
    folder: of the set.
    number: of the shard.
    columns: name -> encoding, sorted.
    sizes: bytes of the values of each; None: they vary.
    rows: encoded values of each sample.
  """
  numbers = lambda *values: struct.pack(f"<{len(values)}I", *values)
  entry = {
    "column_names": list(columns),
    "column_encodings": list(columns.values()),
    "column_sizes": list(sizes),
    "compression": None,
    "format": "mds",
    "hashes": [],
    "size_limit": None,
    "version": 2,
  }
  own = json.dumps(entry, sort_keys=True).encode()
  samples = []
  for row in rows:
    varying = [len(x) for x, size in zip(row, sizes, strict=True) if not size]
    samples.append(numbers(*varying) + b"".join(row))
  begin = 4 * (len(rows) + 2) + len(own)
  ends = itertools.accumulate((len(s) for s in samples), initial=begin)
  name = f"shard.{number:05d}.mds"
  data = numbers(len(rows), *ends) + own + b"".join(samples)
  (folder / name).write_bytes(data)
  raw = {"basename": name, "bytes": len(data), "hashes": {}}
  return {**entry, "raw_data": raw, "samples": len(rows), "zip_data": None}


def _mds(folder: pathlib.Path, rows: Sequence[Sample]) -> SourceConfig:
  folder.mkdir(parents=True, exist_ok=True)
  extra = sorted({k for r in rows for k, _ in r.extra})
  columns = {"caption": "json", **dict.fromkeys(extra, "json"), "id": "str"}
  columns |= {"image": "png", "label": "int"}
  columns = dict(sorted(columns.items()))
  sizes = [8 if encoding == "int" else None for encoding in columns.values()]

  def encoded(row: Sample) -> list[bytes]:
    known = {
      "id": row.id.encode(),
      "image": row.data or b"",
      "label": row.label.to_bytes(8, "little", signed=True),
    }
    texts = {"caption": row.caption, **dict(row.extra)}
    texts = {k: json.dumps(texts.get(k)).encode() for k in columns}
    return [known.get(k, texts[k]) for k in columns]

  half = (len(rows) + 1) // 2
  shards = [
    mds_shard(folder, i, columns, sizes, [encoded(r) for r in part])
    for i, part in enumerate((rows[:half], rows[half:]))
    if part
  ]
  index = {"shards": shards, "version": 2}
  (folder / "index.json").write_text(json.dumps(index))
  return SourceConfig(kind="mds", path=str(folder))


Writer = Callable[[pathlib.Path, Sequence[Sample]], SourceConfig]
# All kinds but those that make their samples (OmniWorld) or need the writer of
# another library (TFDS).
WRITERS: dict[str, Writer] = {
  "manifest": _manifest,
  "webdataset": _webdataset,
  "array_record": _array_record,
  "imagefolder": _imagefolder,
  "files": _grouped,
  "csv": _csv,
  "coco": _coco,
  "vast": _vast,
  "parquet": _parquet,
  "hf_disk": _hf_disk,
  "energon": _energon,
  "mds": _mds,
  "annotations": _annotations,
}
