"""The manifest of a data set's official files, and what lies beside it."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from mico_jax import json_text
from mico_jax.config import ConfigError
from mico_jax.data.build.sets.base import Copy, OfficialSet

MANIFEST, NOTE = "manifest.jsonl", "set.json"
_OFTEN = 64  # samples between two calls about progress


@dataclasses.dataclass(frozen=True)
class SetReport:
  """What was written.

  Attributes:
    manifest: its path.
    samples: of each split.
    outside: whether the manifest names files outside its folder.
  """

  manifest: str
  samples: Mapping[str, int]
  outside: bool


def build(
  name: str,
  reader: OfficialSet,
  folder: str,
  out: str,
  *,
  other_split: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> SetReport:
  """Writes `manifest.jsonl` and `set.json`; an interrupted build leaves neither.

  Args:
    name: of the set.
    reader: of its official files.
    folder: of the user's copy.
    out: made if missing; may be `folder`.
    other_split: take a copy with other numbers of samples than published.
    progress: called with `done` and `total` of `Copy`.

  Raises:
    ConfigError: for a copy of another layout, or another split.
  """  # noqa: E501
  copy = Copy(folder, out, reader.layout)
  os.makedirs(out, exist_ok=True)
  counts: collections.Counter[str] = collections.Counter()
  path, note = os.path.join(out, MANIFEST), os.path.join(out, NOTE)
  part, outside = f"{path}.part", False
  try:
    with open(part, "w", encoding="utf-8") as file:
      for line in reader.lines(copy):
        counts[line["split"]] += 1
        outside = outside or any(
          isinstance(v, str) and v.startswith("../") for v in line.values()
        )
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        number = counts.total()
        if progress is not None and number % _OFTEN == 0:
          progress(copy.done or number, copy.total)
    _check_counts(copy, reader, counts, other_split)
    text = json_text.dumps(
      {
        "set": name,
        "options": dataclasses.asdict(reader),
        "samples": dict(counts),
        "files": dict(copy.hashes),
        **copy.facts,
      },
      indent=1,
    )
    with open(f"{note}.part", "w", encoding="utf-8") as file:
      file.write(text + "\n")
    os.replace(f"{note}.part", note)
    os.replace(part, path)
  finally:
    for left in (part, f"{note}.part"):
      if os.path.exists(left):
        os.remove(left)
  return SetReport(path, dict(counts), outside)


def _check_counts(
  copy: Copy,
  reader: OfficialSet,
  counts: Mapping[str, int],
  other_split: bool,
) -> None:
  """Refuses a copy that is not the published one."""
  if not counts:
    raise copy.wrong("no sample was found.")
  wrong = [
    f"{counts.get(split, 0)} samples of {split!r}, expected {count}"
    for split, count in reader.counts.items()
    if counts.get(split, 0) != count
  ]
  if wrong and not other_split:
    raise copy.wrong(
      f"{'; '.join(wrong)}. Get the official files again, or give "
      "--other-split to take these samples."
    )


def read_note(name: str, folder: str) -> dict[str, Any]:
  """What `build` wrote beside the manifest in a folder.

  Args:
    name: of the set.
    folder: of the manifest.

  Raises:
    ConfigError: saying how it is built, if there is none of this set.
  """
  path = os.path.join(folder, NOTE)
  how = f"build it: mico-jax data build --protocol {name} --from COPY --out DIR"
  try:
    with open(path, encoding="utf-8") as file:
      note = json.load(file)
  except FileNotFoundError:
    raise ConfigError(
      f"{folder!r} holds no {NOTE} and {MANIFEST} of {name}; {how}."
    ) from None
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: not what a build writes: {error}.") from error
  found = note.get("set") if isinstance(note, dict) else None
  if found != name:
    raise ConfigError(f"{path} is of {found!r}, not of {name!r}; {how}.")
  return note
