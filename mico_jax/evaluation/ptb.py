"""English word tokens as caption metrics expect them, without Java.

The common COCO caption scores split captions by the Penn Treebank rules of
Stanford's tokenizer, in lower case, and drop a list of punctuation tokens. The
rules here give the same words as that program (CoreNLP 3.4.1 as in
pycocoevalcap 1.2: `-preserveLines -lowerCase`); they were found by asking it.
`tests/evaluation/ptb_java.json` holds its answers, and how they were made.

At each place the longest match of all rules counts, of equal ones the first,
and what a rule looks ahead at counts as matched: "co.b" is "co." and "b", as
that rule looks two characters ahead, but "co.uk" is one word.

Two quirks are kept, as published scores have them. Bracket names are written in
lower case, so that the list of punctuation does not drop them: "(a)" gives
"-lrb- a -rrb-". And parts of a mixed number or a phone number are joined by a
no-break space: "3 1/2" is one token.

Known differences: characters that entered Unicode after version 6 are letters
here; there they vanish. A caption is read alone; there a last abbreviation or
number may look at the first character of the next caption.

Source: COCO caption evaluation, arXiv:1504.00325, section 3; Penn Treebank
tokenisation, Marcus et al. 1993.
"""

from __future__ import annotations

import functools
import re
import unicodedata

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

# Abbreviations that keep their period, if two more characters follow even where
# a longer word would be possible; the second as "Mass." and "MASS." alone.
_PLACES = (
  "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp "
  "cos ct dak dec esq est etc ext feb fla fri ga inc ind intl jan jr jul jun "
  "kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc "
  "rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis "
  "wisc wyo"
)
_COMPANIES = "ppte pptes ppty pptys pte ptes pty ptys"  # not "PTY."
_CAPITALS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# Those that keep it where no longer word is possible.
_TITLES = (
  "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr "
  "cpl dept det dr drs elec ens ft gen gov govs hon insp invt jos lieut lt maj "
  "messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt "
  "rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
# Those that keep it before a number.
_NUMBERED = "art ca fig figs no nos op pp prop"
# Endings of files.
_FILES = (
  "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg "
  "jpg mov mp3 pdf php pl png ppt ps py sql tar txt wav x xml zip"
)
# Words that start a sentence: a letter before them ends one.
_STARTS = (
  "A About According After An As At But Earlier He Her Here However If In It "
  "Last Many More Now One Other Our She Since So Some Such That The Their Then "
  "There These They This We What When While You"
)

_NAMES = {  # the treebank's spelling of single characters
  **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"},
  **{"{": "-lcb-", "}": "-rcb-", '"': "''", "\u00ad": "-"},
  **{"\u2018": "`", "\u201b": "`", "\u2039": "`", "\u0091": "`"},
  **{"\u2019": "'", "\u203a": "'", "\u0092": "'"},
  **{"\u00ab": "``", "\u201c": "``", "\u0093": "``"},
  **{"\u00bb": "''", "\u201d": "''", "\u0094": "''"},
  **{"\u2013": "--", "\u2014": "--", "\u2015": "--"},
  **{"\u0096": "--", "\u0097": "--", "\u2026": "..."},
  **{"\u00a4": "$", "\u20a0": "$", "\u20ac": "$", "\u0080": "$"},
  **{"\u00a2": "cents", "\u00a3": "#", "\u00bc": "1/4", "\u00bd": "1/2"},
  **{"\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
}
_ENTITIES = {
  **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"},
  **{"&nbsp;": "", "&mdash;": "--", "&ndash;": "--"},
}
# Characters beside letters and digits that are tokens; all others vanish.
_SINGLES = (
  "!-/:-@\\[-`{-~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf"
  "\u00d7\u00f7\u0964\u0965\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038"
  "\u203b-\u203d\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4"
  "\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123"
  "\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f"
  "\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f"
  "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
# Accents, vowel signs and the like that are parts of words.
_MARKS = (
  *((0x2C2, 0x379), (0x384, 0x385), (0x483, 0x487), (0x591, 0x5BD)),
  *((0x5BF, 0x5BF), (0x5C1, 0x5C2), (0x5C4, 0x5C5), (0x615, 0x61A)),
  *((0x64B, 0x65E), (0x670, 0x670), (0x6D6, 0x6ED), (0x70F, 0x7B0)),
  *((0x900, 0x903), (0x93C, 0x94E), (0x951, 0x955), (0x962, 0x963)),
  *((0x981, 0x9E3), (0xA01, 0xA4F), (0xA81, 0xACF), (0xB82, 0xBCD)),
  *((0xC01, 0xC03), (0xC3E, 0xC56), (0xD3E, 0xD48), (0xE31, 0xE3A)),
  *((0xE47, 0xE4E), (0xEB1, 0xECD)),
)

_A = "(?:['\u0092\u2019]|&apos;)"  # apostrophes
_A2 = "(?:[`'\u0091\u0092\u2018\u2019\u201b]|&apos;)"  # and what stands in
_HYPHEN = "[-\u2010\u2011\u058a]"
_URL_END = r"[^\s\"<>|.!?(){},-]"
_PATH = rf"(?:/[^\s\"<>|()]+{_URL_END})?"


def _ranges(first: str) -> str:
  """Ranges for a regex class: characters whose category starts so, or marks."""
  inside = {c for low, high in _MARKS for c in range(low, high + 1)}
  inside.add(0xAD)  # soft hyphens vanish from words
  inside |= {
    c
    for c in range(0x10000)
    if unicodedata.category(chr(c)).startswith(tuple(first.split()))
  }
  out, start = [], -1
  for c in range(0x10001):
    if c in inside and start < 0:
      start = c
    elif c not in inside and start >= 0:
      out.append(f"{chr(start)}-{chr(c - 1)}")
      start = -1
  return "".join(out)


def _either(*words: str) -> str:
  """A regex for any of the words, which are separated by spaces."""
  each = " ".join(words).split()
  return f"(?:{'|'.join(sorted(each, key=len, reverse=True))})"


def _word_rules() -> list[tuple[str, str]]:
  """Kind and pattern of the rules for words."""
  letter, word = f"[{_ranges('L')}]", f"[{_ranges('L Nd')}]"
  initials = r"[A-Za-z](?:\.[A-Za-z])+\."
  piece = rf"(?:[dDoOlL]{_A2}{word}{{2,}}|{word}+)"
  thing = rf"{piece}(?:(?:{_HYPHEN}|_){piece})*"
  dotted = rf"{letter}{word}*(?:[.!?]{letter}{word}*)"
  loose = r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+"
  slashed = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
  clitic = rf"(?i:{_A}(?:s|d|m|re|ve|ll))"
  starts = rf"(?:{_either(_STARTS, _STARTS.upper())}|M[rs]\.)\s"
  places = (
    f"(?:(?i:{_either(_PLACES)})|{_either(_CAPITALS, _CAPITALS.upper())}"
    f"|{_either(_COMPANIES, _COMPANIES.title())})"
  )
  return [
    ("part", r"(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na)"),
    ("part", rf"({dotted}*|{word}+){clitic}"),
    ("part", rf"([A-Za-z]+)[nN]{_A2}[tT]"),
    ("clitic", rf"[nN]{_A2}[tT]"),
    ("word", rf"[nN]{_A2}[tT]{letter}+"),
    ("clitic", rf"({clitic})[^A-Za-z]"),
    ("part", r"(?i:('t)(?:is|was))"),
    ("part", rf"(?i:(y{_A})[A-Za-z])"),
    (
      "word",
      rf"(?i:{_A}n{_A}?|[ldj]{_A}|(?:dunkin|somethin|ol){_A}|{_A}em"
      rf"|c{_A}mon|{_A}[2-9]0s|{_A}till?|s{_A}mores|{_A}cause"
      rf"|li{_A}l|ev{_A}ry|e{_A}er)",
    ),
    ("word", rf"{letter}+[aeiouyAEIOUY]{_A2}[aeiouA-Z]{letter}*"),
    ("word", rf"[A-HJ-XZn]{_A2}{letter}{{2,}}"),
    ("part", rf"({_A}\d\d)\s"),
    ("word", rf"@[A-Za-z_][A-Za-z_0-9]*|\#{letter}+"),
    ("word", r"[A-Z]+\$|[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[Cc]\+\+|[CcFf]\#"),
    ("word", thing),
    (
      "word",
      rf"(?:[A-Za-z0-9]+-)*{initials}"
      rf"(?:{_HYPHEN}(?:{initials}|{word}+))*",
    ),
    ("word", rf"{dotted}+"),
    ("part", rf"({places}\.)[\s\S]{{2}}"),
    ("part", rf"({word}+(?:\.{word}+)*\.(?i:{_either(_FILES)}))[\s.,!?]"),
    ("word", loose),
    ("word", rf"{slashed}(?:\\?/{slashed}){{1,2}}"),
    ("word", rf"(?:(?i:{_either(_TITLES)})|[A-Za-z](?!\.\s+{starts}))\."),
    ("word", r"(?i:(?:ph|ed)\.d\.)"),
    ("part", rf"((?i:{_either(_NUMBERED)})\.)\s?\d"),
    ("part", rf"((?:{thing}|{dotted}+|{loose})\.)[,;:]"),
  ]


def _address_rules() -> list[tuple[str, str]]:
  """Kind and pattern of the rules for markup and addresses."""
  name = r"[A-Za-z_:][\w:.-]*"
  quoted = r"(?:\"[^\"]*\"|'[^']*')"
  return [
    (
      "markup",
      rf"</?[A-Za-z][\w:.-]*(?:\s+{name}(?:\s*=\s*{quoted})?)*\s*[/?]?>"
      r"|<[?!][A-Za-z-][^>]*>",
    ),
    ("entity", r"(?i:&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash);)|&\#\d+;"),
    (
      "word",
      r"<?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*"
      r"[^\s\"<>|(){}.]+>?",
    ),
    ("word", rf"(?i:https?://[^\s\"<>|(){{}}]+{_URL_END})"),
    (
      "word",
      rf"(?i:www)\.(?:[^\s\"<>|.!?(){{}},/]+\.)+[A-Za-z]{{2,4}}{_PATH}",
    ),
    ("word", r"(?i:www)\.(?:[^\s\"<>|.!?(){},]+\.)+[A-Za-z]{2,4}"),
    (
      "word",
      rf"(?:[^\s\"`'<>|!?(){{}},-_$]+\.)+(?i:com|net|org|edu){_PATH}",
    ),
  ]


def _mark_rules() -> list[tuple[str, str]]:
  """Kind and pattern of the rules for numbers and marks."""
  phone = r"\d{2,4}[- \u00a0]"
  return [
    ("word", r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)"),
    ("word", r"(?:\d{1,4}[- \u00a0])?\d{1,4}\\?/\d{1,4}"),
    (
      "word",
      rf"(?:\(\d{{2,3}}\)[ \u00a0]?|\+{{0,2}}(?:{phone})?{phone})"
      r"\d{3,4}[- \u00a0]?\d{3,5}",
    ),
    ("part", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]"),
    (
      "word",
      r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)"
      r"|\([-^x=~<>']-[-^x=~<>'`]\)",
    ),
    ("word", r"(?i:-[LR][RCS]B-)"),
    ("ellipsis", r"\.\.\.+|\.(?: \.){2,}"),
    ("dash", r"-{2,4}"),
    ("word", r"-{5,}|_+|[?!]+|(?:\\\*)+|\*+|@+|\#+|<<|>>|''|``"),
    ("opening", r"([`'])[A-Za-z]\S"),
    ("clitic", rf"(?i:{_A}(?:s|d|m|re|ve|ll))"),
    (
      "quotes",
      "[\u0091-\u0094\u2018-\u201f\u00ab\u00bb\u2039\u203a]{2,}",
    ),
    ("other", r"\S"),
  ]


@functools.cache
def _rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
  """Kind and pattern of each rule; its last group, if any, is the token."""
  rules = (*_address_rules(), *_word_rules(), *_mark_rules())
  return tuple((kind, re.compile(pattern)) for kind, pattern in rules)


# The common case: a word of letters with a space behind it.
_PLAIN = re.compile(r" *([A-Za-z]+)(?= )")
_CUT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_SPACES = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]")
_KNOWN = re.compile(rf"[{_SINGLES}]")
_QUOTES = str.maketrans(
  {c: n for c, n in _NAMES.items() if n in ("'", "`")} | {"\u00ad": ""}
)


def _spelled(kind: str, token: str) -> str:
  """A token as the treebank writes it, in lower case; "": it vanishes."""
  if kind == "entity":
    return _ENTITIES.get(token.lower(), token)
  if kind in ("ellipsis", "dash"):
    return "..." if kind == "ellipsis" else "--"
  if kind == "quotes":
    return "".join(_NAMES.get(mark, mark) for mark in token)
  if kind == "clitic":
    return re.sub("(?i)&apos;", "'", token.translate(_QUOTES)).lower()
  if len(token) == 1:
    known = kind != "other" or _KNOWN.match(token)
    return _NAMES.get(token, token.lower() if known else "")
  for mark in "" if kind == "markup" else "()":
    token = token.replace(mark, _NAMES[mark])
  token = re.sub("(?i)&amp;", "&", token.replace("\u00ad", ""))
  return re.sub(r"\s", "\u00a0", token).lower()


def split_treebank(text: str) -> list[str]:
  """All treebank tokens of a text, in lower case.

  Args:
    text: one caption; line breaks count as spaces.
  """
  # Rules that look ahead see the end as white space.
  text = _SPACES.sub(" ", text).rstrip() + " \n"
  tokens: list[str] = []
  position, end = 0, len(text) - 2
  while position < end:
    plain = _PLAIN.match(text, position)
    if plain and plain[1].lower() not in _CUT:
      tokens.append(plain[1].lower())
      position = plain.end()
      continue
    if text[position].isspace():
      position += 1
      continue
    found = [
      (kind, match)
      for kind, rule in _rules()
      if (match := rule.match(text, position))
    ]
    kind, match = max(
      found, key=lambda pair: pair[1].end()
    )  # the first of such
    group = match.lastindex or 0
    if token := _spelled(kind, match[group]):
      tokens.append(token)
    position = match.end(group)
  return tokens


def tokenize(text: str) -> list[str]:
  """The words of a caption as metrics compare them.

  Args:
    text: one caption.

  Returns:
    Lower-case tokens without the marks of `PUNCTUATION`; bracket names stay.
  """
  return [token for token in split_treebank(text) if token not in PUNCTUATION]
