"""What the samples of a manifest have, told by the bits of their lines.

Beside the bit of a field that is there (`lines`), a line has one that says
whether it holds texts. Lines of which these do not tell what the record will
hold, and whether there will be one, are in doubt: their records are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mico_jax.config import SourceConfig
from mico_jax.data.index import lines
from mico_jax.data.index.columns import Columns
from mico_jax.data.records import CAPTION, caption_fields, media_fields
from mico_jax.modalities import MODALITIES, WHOLE

_CAPTIONS, _NESTED, _SUFFIX = "captions", "captions.", "_caption"


class Wanted(NamedTuple):
  """Bits by which lines are chosen.

  Attributes:
    media: masks of `fields`, of each of which a line needs a bit.
    captions: masks of `texts`, of each of which a line needs a bit.
    texts: fields that make captions: a line that has one without texts is in
      doubt.
  """

  media: tuple[int, ...]
  captions: tuple[int, ...]
  texts: int


def wanted(
  meta: Mapping[str, Any], config: SourceConfig, names: Sequence[str]
) -> Wanted | None:
  """The bits of what lines must have.

  Args:
    meta: of the index.
    config: of the source.
    names: modalities, "caption" or "caption:KIND", as in `require`.

  Returns:
    None, if fields are mapped in a way that bits do not tell.
  """
  media = media_fields(config)
  mapped = {*media.values(), *config.captions.values()}
  if any(n == _CAPTIONS or n.startswith(_NESTED) for n in mapped):
    return None
  known = caption_fields()
  every = {
    *config.captions.values(),
    *(field for fields in known.values() for field in fields),
    *(n for n in meta["fields"] if n.endswith(_SUFFIX)),
    *(n for n in meta["fields"] if n.startswith(_NESTED)),
    _CAPTIONS,
  }
  bits = {name: 1 << i for i, name in enumerate(meta["fields"])}

  def mask(fields: Iterable[str]) -> int:
    return sum(bits.get(field, 0) for field in set(fields))

  def of_kind(kind: str) -> int:
    fields = {_NESTED + kind, kind + _SUFFIX, *known.get(kind, ())}
    fields.update(n for k, n in config.captions.items() if k == kind)
    return mask({*fields, _CAPTIONS} if kind == WHOLE else fields)

  found, captions = [], []
  for name in names:
    what, _, kind = name.partition(":")
    if what == CAPTION:
      captions.append(of_kind(kind) if kind else mask(every))
    elif MODALITIES[name].embedding == "text":
      captions.append(of_kind(MODALITIES[name].caption_kind))
    else:
      found.append(mask([media[name]]))
  return Wanted(tuple(found), tuple(captions), mask(every))


def look(
  columns: Columns, rows: Any, what: Wanted
) -> tuple[np.ndarray, np.ndarray]:
  """Which rows have what is wanted, and which are in doubt.

  Args:
    columns: the index.
    rows: a slice, or rows in order.
    what: of `wanted`.
  """
  fields, texts = columns["fields"][rows], columns["texts"][rows]
  has = np.ones(len(fields), bool)
  for masks, column in ((what.media, fields), (what.captions, texts)):
    for mask in masks:
      has &= column & np.uint64(mask) != 0
  unclear = np.uint64(lines.BROKEN | lines.MORE | lines.ODD)
  doubt = fields & unclear != 0
  doubt |= fields & ~texts & np.uint64(what.texts) != 0
  return has, doubt
