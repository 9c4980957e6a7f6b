"""English word tokens as caption metrics expect them, without Java.

The common COCO caption scores split captions with the Penn Treebank rules of a
Java program and then drop punctuation tokens. This file owns those rules in
plain Python: contractions are split (`don't` to `do n't`, `it's` to `it 's`,
`cannot` to `can not`), brackets, quotes, dashes and ellipses get their treebank
names, numbers, abbreviations, hyphenated words, addresses and web links stay
whole, every other mark stands alone.

Open points: the rules were written from their description and have not been
compared with a run of the Java program; the abbreviation list is the frequent
part of it. That program also lower-cases the bracket names, so that its users
fail to drop them; here they are dropped unless `drop_brackets=False`.

Source: COCO caption evaluation, arXiv:1504.00325, section 3; Penn Treebank
tokenisation, Marcus et al. 1993.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(
  (
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
  )
)

_BRACKETS = {
  "(": "-LRB-",
  ")": "-RRB-",
  "[": "-LSB-",
  "]": "-RSB-",
  "{": "-LCB-",
  "}": "-RCB-",
}

# Written as one word, two in the treebank: characters of the second part.
_JOINED = {
  "cannot": 3,
  "gonna": 2,
  "gotta": 2,
  "lemme": 2,
  "gimme": 2,
  "wanna": 2,
}

_ABBREVIATIONS = (
  # Titles, companies, streets and measures.
  *("mr", "mrs", "ms", "dr", "prof", "rev", "gen", "col", "capt", "lt"),
  *("sgt", "gov", "sen", "rep", "hon", "pres", "jr", "sr", "st", "ave"),
  *("blvd", "rd", "mt", "ft", "inc", "co", "corp", "ltd", "bros", "dept"),
  *("vs", "etc", "al", "approx", "est", "fig", "vol"),
  # Months and days.
  *("jan", "feb", "mar", "apr", "aug", "sep", "sept", "oct", "nov", "dec"),
  *("mon", "tue", "tues", "wed", "thu", "thurs", "fri"),
)

_APOS = "['\u2019\u02bc]"
_WORD = r"[^\W_]"  # a letter or digit
_END = rf"(?!{_WORD})"

_CLITIC = re.compile(rf"{_APOS}(?:s|m|d|re|ve|ll){_END}", re.IGNORECASE)
_NOT = re.compile(rf"{_APOS}t{_END}", re.IGNORECASE)

# Words that hold an apostrophe and stay whole.
_APOSTROPHE_WORD = (
  rf"(?:{_APOS}n{_APOS}|{_APOS}em|{_APOS}til|{_APOS}till|{_APOS}cause"
  rf"|{_APOS}[2-9]0s|o{_APOS}clock|ol{_APOS}|c{_APOS}mon|cont{_APOS}d|e{_APOS}er"
  rf"|s{_APOS}mores|ev{_APOS}ry|li{_APOS}l|nor{_APOS}easter"
  rf"|(?-i:[A-Za-z]*[aeiouyAEIOUY]{_APOS}"
  rf"(?!(?i:s|m|d|re|ve|ll|t){_END})[aeiouA-Z][A-Za-z]*)){_END}"
)

_RULES = (
  ("link", r"(?:https?://|www\.)[^\s<>\"()]*[^\s<>\"().,;:!?']"),
  ("address", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
  ("tag", rf"[@#][^\W\d]{_WORD}*"),
  ("smiley", r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?!\w)"),
  ("ellipsis", r"\.(?:\s?\.)+|\u2026"),
  ("dash", r"-{2,}|[\u2012-\u2015]"),
  ("acronym", rf"[A-Za-z](?:\.[A-Za-z])+\.?{_END}"),
  ("abbreviation", rf"(?:{'|'.join(_ABBREVIATIONS)})\.{_END}"),
  ("number", rf"(?<![\w.])[-+]?\d*(?:[.,:/]\d+)+{_END}"),
  ("was", rf"{_APOS}t(?=(?:is|was){_END})"),
  ("all", rf"y{_APOS}(?=all{_END})"),
  ("apostrophe", _APOSTROPHE_WORD),
  ("clitic", _CLITIC.pattern),
  ("company", r"[A-Za-z]+&[A-Za-z]+"),
  ("word", rf"{_WORD}+(?:-{_WORD}+)*"),
  ("entity", r"&(?:amp|lt|gt|quot|nbsp);"),
  ("quote", r"''|``|[\"\u201c\u201d\u201e\u00ab\u00bb]"),
  ("other", r"\S"),
)
_SCANNER = re.compile(
  "|".join(f"(?P<{name}>{pattern})" for name, pattern in _RULES),
  re.IGNORECASE,
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''"}
_CURRENCY = {"\u00a2": "cents", "\u00a3": "#", "\u20ac": "$"}
_SINGLE = {"\u2018": "`", "\u2019": "'", "\u02bc": "'", "\u201a": "'"}


def _split_word(word: str, text: str, end: int) -> tuple[list[str], int]:
  """Parts of a word with the contraction behind it, and where they end."""
  lowered = word.lower()
  if lowered in _JOINED:
    cut = len(word) - _JOINED[lowered]
    return [word[:cut], word[cut:]], end
  if lowered.endswith("n") and len(word) > 1 and (m := _NOT.match(text, end)):
    return [word[:-1], word[-1] + m.group()], m.end()
  if m := _CLITIC.match(text, end):
    return [word, m.group()], m.end()
  return [word], end


def _name(kind: str, token: str, opens: bool) -> str:
  """The treebank's spelling of one token."""
  if kind == "ellipsis":
    return "..."
  if kind == "dash":
    return "--"
  if kind == "quote":
    return "``" if opens and token != "''" else "''"
  if kind == "entity":
    return _ENTITIES.get(token.lower(), "")
  if kind == "smiley":
    return "".join(_BRACKETS.get(c, c) for c in token)
  if kind == "other":
    if token == "'" and opens:
      return "`"
    token = _BRACKETS.get(token) or _CURRENCY.get(token) or token
    token = _SINGLE.get(token, token)
    return f"\\{token}" if token in "/*" else token
  return re.sub(_APOS, "'", token)


def split_treebank(text: str) -> list[str]:
  """All treebank tokens of a text, lower-cased but for bracket names.

  Args:
    text: one caption; line breaks count as spaces.
  """
  tokens: list[str] = []
  position = 0
  while match := _SCANNER.search(text, position):
    kind, token, end = str(match.lastgroup), match.group(), match.end()
    before = text[match.start() - 1] if match.start() else " "
    if kind == "word":
      parts, end = _split_word(token, text, end)
    elif m := (_CLITIC.match(text, end) if kind == "acronym" else None):
      parts, end = [token, m.group()], m.end()
    else:
      parts = [token]
    opens = before.isspace() or before in "([{"
    for part in parts:
      name = _name(kind, part, opens)
      if name:
        tokens.append(name if kind in ("other", "smiley") else name.lower())
    position = end
  return tokens


def tokenize(text: str, *, drop_brackets: bool = True) -> list[str]:
  """The words of a caption as metrics compare them.

  Args:
    text: one caption.
    drop_brackets: false keeps brackets as "-lrb-" and so on, as the Java
      pipeline does by accident; for comparing published numbers.

  Returns:
    Lower-case tokens without the marks of `PUNCTUATION`.
  """
  words = []
  for token in split_treebank(text):
    bracket = token in PUNCTUATION and token in _BRACKETS.values()
    if token in PUNCTUATION and (drop_brackets or not bracket):
      continue
    words.append(token.lower())
  return words
