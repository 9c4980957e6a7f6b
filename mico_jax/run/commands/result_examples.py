"""Single queries of evaluations as HTML, with their pictures and sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from mico_jax.evaluation.examples import WORST
from mico_jax.evaluation.shown_items import shown_keys


def example_section(label: str, contents: Mapping[str, Any]) -> Iterable[str]:
  """The parts of a section; none without examples.

  Args:
    label: of the evaluation.
    contents: of `examples.json`.
  """
  found = contents.get("examples") or ()
  if not found:
    return
  yield f"<h2>Examples: {escape(label)}</h2>"
  yield (
    '<p class="faint">Of each measurement the first queries, then those '
    "whose right answer came last. Green edge: right; red: wrong.</p>"
  )
  names = dict.fromkeys(str(example["name"]) for example in found)
  for number, name in enumerate(names):
    mine = [example for example in found if example["name"] == name]
    cards = "".join(_example(x, contents["items"]) for x in mine)
    opened = " open" if number < 2 else ""
    yield (
      f"<details{opened}><summary><b>{escape(name)}</b> "
      f'<span class="faint">{len(mine)} queries</span></summary>'
      f"{cards}</details>"
    )


def _example(example: Mapping[str, Any], items: Mapping[str, Any]) -> str:
  query = example["query"]
  why = "one of the worst" if example["chosen"] == WORST else "one of the first"
  told = [why]
  if example.get("rank"):
    told.insert(0, f"right at {example['rank']} of {example['candidates']}")
  letters = str(example["letters"])
  parts = [f'<div class="faint">{", ".join(told)}</div>']
  if query.get("text"):
    parts.append(f'<div class="query text">{escape(query["text"])}</div>')
  if query.get("item") is not None:
    parts.append(_item(items.get(str(query["item"]), {}), letters))
  answers = "".join(
    _answer(answer, items, letters) for answer in example["answers"]
  )
  return (
    f'<div class="example">{"".join(parts)}'
    f'<div class="row">{answers}</div></div>'
  )


def _answer(
  answer: Mapping[str, Any], items: Mapping[str, Any], letters: str
) -> str:
  right, place = answer.get("right"), answer.get("place")
  if place is None:
    mark = "true" if right else "written"
  else:
    mark = f"{place}. {'right' if right else 'wrong'}"
  if answer.get("score") is not None:
    mark += f"  {answer['score']:.3f}"
  kind = "" if right is None else (" right" if right else " wrong")
  parts = [f'<div class="mark">{mark}</div>']
  if answer.get("text"):
    parts.append(f'<div class="text">{escape(answer["text"])}</div>')
  if answer.get("item") is not None:
    parts.append(_item(items.get(str(answer["item"]), {}), letters))
  return f'<div class="answer{kind}">{"".join(parts)}</div>'


def _item(item: Mapping[str, Any], letters: str) -> str:
  """Pictures and sounds of an item, of the modalities of a measurement."""
  keys = shown_keys(item, letters)
  tiles = "".join(
    f'<figure><img alt="{escape(tile["title"])}" '
    f'src="data:image/jpeg;base64,{escape(tile["jpeg"])}">'
    f"<figcaption>{escape(tile['title'])}</figcaption></figure>"
    for tile in (*(item.get("tiles") or ()), *(item.get("attention") or ()))
    if tile["modality"] in keys
  )
  sounds = "".join(
    '<audio controls preload="none" '
    f'src="data:audio/flac;base64,{escape(sound["flac"])}"></audio>'
    for sound in item.get("sounds") or ()
    if sound["modality"] in keys
  )
  broken = item.get("broken")
  note = f"<small>{escape(str(broken))}</small>" if broken else ""
  return (
    f'<div class="tiles">{tiles}</div>{sounds}'
    f"<small>{escape(str(item.get('id', '')))}</small>{note}"
  )
