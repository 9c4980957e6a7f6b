r"""Lines of a manifest for the parts of a file: arrays, pixels, windows, rows.

Sets of sensors often are one file: samples along the first axis of arrays,
pixels of a scene, windows of a long series, rows of a table. A manifest names
each part on a line of its own:

    cd FOLDER
    python -m mico_jax.data.parts entries beats.npz --splits train test \
        --media biosignal={split}_x --field class_name={split}_y \
        --names class_name=classes --captions "an ill heart" "a sound heart" \
        > beats.jsonl
    python -m mico_jax.data.parts pixels scene.npz --media hyperspectral=cube \
        --field class_name=labels --test test_mask > scene.jsonl
    python -m mico_jax.data.parts windows load.csv --media timeseries \
        --length 432 --rows train=0:8640 --rows test=11184:14400 > load.jsonl
    python -m mico_jax.data.parts rows people.csv --media tabular \
        --field income --split train > people.jsonl

Files are named as they are given here, so the manifest belongs into the folder
that the command is run in.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.modalities import MODALITIES

Line = dict[str, Any]


def entries(
  path: str,
  *,
  media: Mapping[str, str],
  splits: Sequence[str] = ("train",),
  fields: Mapping[str, str] | None = None,
  names: Mapping[str, str] | None = None,
  captions: Sequence[str] = (),
) -> Iterator[Line]:
  """Lines of the entries of arrays of an .npz file, along their first axes.

  Args:
    path: of the file.
    media: modality -> its array; "{split}" in a name stands for that.
    splits: in the order of the lines.
    fields: record field -> array with its value for each entry; likewise.
    names: record field -> array of texts; its values are numbers of these.
    captions: a text for each of these names, of the one field that has some.

  Raises:
    ValueError: for arrays that are missing or of different lengths, and for
      numbers or captions that fit no name.
  """
  with np.load(path, allow_pickle=False) as arrays:
    texts = _texts(arrays, path, fields or {}, names or {}, captions)
    for split in splits:
      shown = {k: n.format(split=split) for k, n in media.items()}
      columns = {
        k: _array(arrays, path, n.format(split=split))
        for k, n in (fields or {}).items()
      }
      counts = {n: len(_array(arrays, path, n)) for n in shown.values()}
      counts |= {name: len(values) for name, values in columns.items()}
      if len(set(counts.values())) > 1:
        raise ValueError(f"{path}: entries of different numbers: {counts}.")
      for i in range(next(iter(counts.values()))):
        line = {k: f"{path}:{name}[{i}]" for k, name in shown.items()}
        values = {name: column[i] for name, column in columns.items()}
        told = _told(values, texts, captions)
        yield {"id": f"{split}{i}", **line, **told, "split": split}


def pixels(
  path: str,
  *,
  media: Mapping[str, str],
  test: str,
  fields: Mapping[str, str] | None = None,
  names: Mapping[str, str] | None = None,
  captions: Sequence[str] = (),
) -> Iterator[Line]:
  """Lines of the pixels of a scene in an .npz file, with `row` and `column`.

  Args:
    path: of the file.
    media: modality -> its array, [Y, X, bands].
    test: array [Y, X], true at pixels of the test part.
    fields: record field -> array [Y, X] with its values.
    names: as in `entries`.
    captions: as in `entries`.

  Raises:
    ValueError: as `entries`.
  """
  with np.load(path, allow_pickle=False) as arrays:
    texts = _texts(arrays, path, fields or {}, names or {}, captions)
    mask = _array(arrays, path, test)
    columns = {k: _array(arrays, path, n) for k, n in (fields or {}).items()}
    cubes = {k: _array(arrays, path, n) for k, n in media.items()}
    shapes = {k: a.shape[:2] for k, a in {**columns, **cubes}.items()}
    if mask.ndim != 2 or set(shapes.values()) != {mask.shape}:
      raise ValueError(
        f"{path}: rows and columns differ: {shapes}, {test} has {mask.shape}."
      )
  for y, x in np.ndindex(*mask.shape):
    line = {k: f"{path}:{name}@{y},{x}" for k, name in media.items()}
    values = {name: column[y, x] for name, column in columns.items()}
    told = _told(values, texts, captions) | {"row": y, "column": x}
    split = "test" if mask[y, x] else "train"
    yield {"id": f"{y},{x}", **line, **told, "split": split}


def windows(
  path: str,
  *,
  media: str,
  length: int,
  rows: Mapping[str, tuple[int, int]],
  step: int = 1,
) -> Iterator[Line]:
  """Lines of the windows of a .csv file with a header.

  Args:
    path: of the file.
    media: its modality.
    length: rows of a window.
    rows: split -> first row, and the row behind the last, counted from 0.
    step: rows between the first rows of two windows.

  Raises:
    ValueError: for rows that the file does not have.
  """
  count = len(_table(path)) - 1
  for split, (first, end) in rows.items():
    if not 0 <= first <= end - length or end > count:
      raise ValueError(
        f"{path}: {split}={first}:{end} holds no window of {length} of its "
        f"{count} rows."
      )
    for i in range(first, end - length + 1, step):
      line = {media: f"{path}:rows[{i}:{i + length}]"}
      yield {"id": f"{split}{i}", **line, "split": split}


def table_rows(
  path: str, *, media: str, split: str = "train", fields: Sequence[str] = ()
) -> Iterator[Line]:
  """Lines of the rows of a .csv file with a header.

  Args:
    path: of the file.
    media: its modality.
    split: of all rows.
    fields: columns that are also fields of the records, as texts.

  Raises:
    ValueError: for columns that the file does not have.
  """
  head, *rows = _table(path)
  if missing := [name for name in fields if name not in head]:
    raise ValueError(f"{path} has no column {missing[0]!r}, but {head}.")
  for i, row in enumerate(rows):
    told = {name: row[head.index(name)].strip() for name in fields}
    line = {media: f"{path}:rows[{i}:{i + 1}]"}
    yield {"id": f"{split}{i}", **line, **told, "split": split}


def _table(path: str) -> list[list[str]]:
  """Cells of each row, the header first."""
  with open(path, newline="", encoding="utf-8-sig") as file:
    rows = [row for row in csv.reader(file) if row]
  if len(rows) < 2:
    raise ValueError(f"{path}: a table of {len(rows)} lines.")
  return [[name.strip() for name in rows[0]], *rows[1:]]


def _array(arrays: Any, path: str, name: str) -> np.ndarray:
  if name not in arrays:
    raise ValueError(
      f"{path} has no array {name!r}, but {', '.join(arrays.files)}."
    )
  return arrays[name]


def _texts(
  arrays: Any,
  path: str,
  fields: Mapping[str, str],
  names: Mapping[str, str],
  captions: Sequence[str],
) -> dict[str, list[str]]:
  """Record field -> its names."""
  if unknown := [name for name in names if name not in fields]:
    raise ValueError(f"names of {unknown[0]!r}, which is none of the fields.")
  texts = {
    k: [str(x) for x in _array(arrays, path, n)] for k, n in names.items()
  }
  if captions and [len(x) for x in texts.values()] != [len(captions)]:
    raise ValueError(
      f"{len(captions)} captions; expected one for each name of one field: "
      f"{texts}."
    )
  return texts


def _told(
  values: Mapping[str, Any],
  texts: Mapping[str, Sequence[str]],
  captions: Sequence[str],
) -> Line:
  """Fields of a record, and its caption."""
  line: Line = {}
  for name, value in values.items():
    plain = value.item()
    line[name] = plain
    if name in texts:
      if plain not in range(len(texts[name])):
        raise ValueError(f"{name} {plain!r} has none of {texts[name]}.")
      line[name] = texts[name][plain]
      if captions:
        line["caption"] = captions[plain]
  return line


def _pair(text: str) -> tuple[str, str]:
  """NAME=VALUE."""
  name, equals, value = text.partition("=")
  if not (name and equals and value):
    raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=VALUE.")
  return name, value


def _range(text: str) -> tuple[str, tuple[int, int]]:
  """SPLIT=FIRST:END."""
  name, value = _pair(text)
  try:
    first, end = map(int, value.split(":"))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r}; expected SPLIT=FIRST:END."
    ) from None
  return name, (first, end)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.data.parts",
    description="Prints the lines of a manifest for the parts of a file.",
  )
  kinds = parser.add_subparsers(dest="kind", required=True)
  for name, about, file in (
    ("entries", "entries of arrays, along their first axes", ".npz file"),
    ("pixels", "pixels of a scene", ".npz file"),
    ("windows", "windows of a table over time", ".csv file with a header"),
    ("rows", "rows of a table", ".csv file with a header"),
  ):
    sub = kinds.add_parser(name, help=about, description=f"Lines of {about}.")
    sub.add_argument("file", help=file)
    arrays = name in ("entries", "pixels")
    sub.add_argument(
      "--media", type=_pair if arrays else str, required=True,
      action="append" if arrays else "store",
      metavar="MODALITY=ARRAY" if arrays else "MODALITY",
      help="what the parts are",
    )  # fmt: skip
    if name != "windows":
      sub.add_argument(
        "--field", type=_pair if arrays else str, action="append", default=[],
        metavar="FIELD=ARRAY" if arrays else "COLUMN",
        help="field of the records, such as a label; may be repeated",
      )  # fmt: skip
    if arrays:
      sub.add_argument(
        "--names", type=_pair, action="append", default=[],
        metavar="FIELD=ARRAY", help="texts for the numbers of a field",
      )  # fmt: skip
      sub.add_argument(
        "--captions", nargs="+", default=[], metavar="TEXT",
        help="a caption for each of these",
      )  # fmt: skip
  kinds.choices["entries"].add_argument(
    "--splits", nargs="+", default=["train"],
    help='splits; names of arrays hold "{split}"',
  )  # fmt: skip
  kinds.choices["pixels"].add_argument(
    "--test", required=True, metavar="ARRAY",
    help="true at pixels of the test part",
  )  # fmt: skip
  sub = kinds.choices["windows"]
  sub.add_argument("--length", type=int, required=True, help="rows of a window")
  sub.add_argument("--step", type=int, default=1, help="rows between two")
  sub.add_argument(
    "--rows", type=_range, action="append", required=True,
    metavar="SPLIT=FIRST:END", help="rows of a split; may be repeated",
  )  # fmt: skip
  kinds.choices["rows"].add_argument(
    "--split", default="train", help="of all rows"
  )
  return parser


def _lines(args: argparse.Namespace) -> Iterator[Line]:
  """The lines that the arguments ask for."""
  if args.kind == "windows":
    return windows(
      args.file, media=args.media, length=args.length, step=args.step,
      rows=dict(args.rows),
    )  # fmt: skip
  if args.kind == "rows":
    return table_rows(
      args.file, media=args.media, split=args.split, fields=args.field
    )
  common: dict[str, Any] = {
    "media": dict(args.media),
    "fields": dict(args.field),
    "names": dict(args.names),
    "captions": args.captions,
  }
  if args.kind == "pixels":
    return pixels(args.file, test=args.test, **common)
  return entries(args.file, splits=args.splits, **common)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the lines of a manifest."""
  parser = _parser()
  args = parser.parse_args(argv)
  media = [args.media] if isinstance(args.media, str) else dict(args.media)
  if unknown := [key for key in media if key not in MODALITIES]:
    parser.error(
      f"unknown modality {unknown[0]!r}; known: {', '.join(MODALITIES)}."
    )
  try:
    for line in _lines(args):
      sys.stdout.write(json.dumps(line) + "\n")
  except (OSError, ValueError) as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
