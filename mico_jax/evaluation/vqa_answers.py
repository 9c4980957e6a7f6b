"""Soft accuracy of visual question answering, and its reading of answers.

An answer counts by how many of the ten people gave it: 1 from three on. It is
the mean over all choices of nine people out of ten of min(matches / 3, 1).
Where the people differ, punctuation is removed, number words become digits,
articles go, and contractions get their apostrophe back.

Source: Antol et al., VQA, arXiv:1505.00468, and the rules of the official
evaluation, its peculiarities included: they are applied only where the given
answers are not all the same, and to people's answers only as far as
punctuation goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PEOPLE = 10
_ENOUGH = 3  # people who agree make an answer right
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# fmt: off
_NUMBERS = {
  "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
  "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}
# fmt: on
_ARTICLES = {"a", "an", "the"}
_SHORT = tuple(
  """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
  hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd
  it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
  not've o'clock oughtn't 'ow's'at shan't she'd've she's should've shouldn't
  shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd
  someone'd've someone'll someone's something'd something'd've something'll
  that's there'd there'd've there're there's they'd they'd've they'll they're
  they've 'twas wasn't we'd've we've weren't what'll what're what's what've
  when's where'd where's where've who'd who'd've who'll who's who've why'll
  why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
  you'd you'd've you'll you're you've
  """.split()  # noqa: SIM905 - a word each
)
# A contraction without one of its apostrophes -> as it should be.
_CONTRACTIONS = {
  word[: i.start()] + word[i.end() :]: word
  for word in _SHORT
  for i in re.finditer("'", word)
}


def without_punctuation(text: str) -> str:
  """A text without punctuation; what stood between words becomes a space."""
  tight = bool(_DIGIT_COMMA.search(text))
  out = text
  for sign in _PUNCTUATION:
    if f"{sign} " in text or f" {sign}" in text or tight:
      out = out.replace(sign, "")
    else:
      out = out.replace(sign, " ")
  return _PERIOD.sub("", out)


def plain_words(text: str) -> str:
  """A text in small letters, with digits, without articles."""
  words = [_NUMBERS.get(word, word) for word in text.lower().split()]
  kept = [word for word in words if word not in _ARTICLES]
  return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
  """How right an answer is, in [0, 1].

  Args:
    answer: of the model.
    given: those of ten people.

  Raises:
    ValueError: for another number of people.
  """
  if len(given) != PEOPLE:
    raise ValueError(
      f"{len(given)} answers; soft accuracy is defined for those of {PEOPLE} "
      "people."
    )
  answer = answer.replace("\n", " ").replace("\t", " ").strip()
  if len(set(given)) > 1:
    given = [without_punctuation(text) for text in given]
    answer = plain_words(without_punctuation(answer))
  same = [text == answer for text in given]
  count = sum(same)
  return sum(min((count - s) / _ENOUGH, 1.0) for s in same) / PEOPLE
