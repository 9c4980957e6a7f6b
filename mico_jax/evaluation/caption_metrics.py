"""CIDEr-D, BLEU-1..4 and ROUGE-L of captions, in Python and NumPy.

All follow the common COCO implementation, so that numbers compare: PTB tokens
(`ptb.tokenize`), CIDEr with clipping, a Gaussian length penalty (sigma 6),
factor 10 and document frequencies from the references of the evaluated set;
corpus BLEU against the reference of the closest length, without smoothing;
ROUGE-L with beta 1.2 from the best precision and the best recall.

Quirks kept for comparability: the length in CIDEr's penalty counts bigrams, and
CIDEr and BLEU take "3\u00a01/2", one token of the tokenizer, for two words.

Equal to pycocoevalcap 1.2 on the same tokens to 1e-9 (frozen in the tests).

Source: CIDEr, arXiv:1411.5726; BLEU, ACL P02-1040; ROUGE, ACL W04-1013.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mico_jax.evaluation import ptb

_MAX_N = 4
_SIGMA = 6.0
_BETA = 1.2

Ngrams = Counter[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class CaptionScores:
  """Scores of a set of captions.

  Attributes:
    cider: CIDEr-D, in [0, 10]; often printed times 100.
    bleu: corpus BLEU-1 to BLEU-4, in [0, 1].
    rouge_l: in [0, 1].
    cider_items: CIDEr-D of each item, whose mean is `cider`.
    rouge_l_items: ROUGE-L of each item.
  """

  cider: float
  bleu: tuple[float, float, float, float]
  rouge_l: float
  cider_items: Float[np.ndarray, " N"]
  rouge_l_items: Float[np.ndarray, " N"]


def _words(tokens: Sequence[str]) -> list[str]:
  """Tokens, those with a no-break space inside as their parts."""
  return " ".join(tokens).split()


def _ngrams(tokens: Sequence[str]) -> Ngrams:
  tokens = _words(tokens)
  return Counter(
    tuple(tokens[i : i + n])
    for n in range(1, _MAX_N + 1)
    for i in range(len(tokens) - n + 1)
  )


def _check(
  candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> None:
  if len(candidates) != len(references):
    raise ValueError(
      f"{len(candidates)} candidates but {len(references)} lists of "
      "references; give one list per candidate."
    )
  if not candidates:
    raise ValueError("no captions to score.")
  for i, texts in enumerate(references):
    if isinstance(texts, str) or not texts:
      raise ValueError(
        f"references[{i}] is {texts!r}; expected a list of one or more texts."
      )


# --------------------------------------------------------------------- CIDEr
def _weights(
  counts: Ngrams, frequency: Ngrams, log_items: float
) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
  """TF-IDF vectors and their norms per n, and the number of bigrams."""
  vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_MAX_N)]
  for gram, count in counts.items():
    idf = log_items - math.log(max(1.0, frequency[gram]))
    vectors[len(gram) - 1][gram] = count * idf
  norms = [math.sqrt(sum(x * x for x in v.values())) for v in vectors]
  bigrams = sum(c for gram, c in counts.items() if len(gram) == 2)
  return vectors, norms, bigrams


def cider_d(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> Float[np.ndarray, " N"]:
  """CIDEr-D of each item; the set's score is their mean.

  Args:
    candidates: tokens of one caption per item.
    references: tokens of one or more captions per item.
  """
  reference_counts = [[_ngrams(r) for r in texts] for texts in references]
  frequency: Ngrams = Counter()
  for counts in reference_counts:
    frequency.update(set().union(*counts))
  log_items = math.log(len(candidates))
  scores = []
  for candidate, counts in zip(candidates, reference_counts, strict=True):
    ours, our_norms, our_length = _weights(
      _ngrams(candidate), frequency, log_items
    )
    total = 0.0
    for reference in counts:
      theirs, norms, length = _weights(reference, frequency, log_items)
      penalty = math.exp(-((our_length - length) ** 2) / (2 * _SIGMA**2))
      for n in range(_MAX_N):
        dot = sum(
          min(x, theirs[n][gram]) * theirs[n][gram]
          for gram, x in ours[n].items()
          if gram in theirs[n]
        )
        if our_norms[n] and norms[n]:
          dot /= our_norms[n] * norms[n]
        total += penalty * dot
    scores.append(10.0 * total / (_MAX_N * len(counts)))
  return np.asarray(scores, np.float64)


# ---------------------------------------------------------------------- BLEU
def bleu(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> tuple[float, float, float, float]:
  """Corpus BLEU-1 to BLEU-4 of tokenised captions."""
  tiny, small = 1e-15, 1e-9
  matched, guessed = np.zeros(_MAX_N), np.zeros(_MAX_N)
  length = closest = 0
  for candidate, texts in zip(candidates, references, strict=True):
    size = len(_words(candidate))
    length += size
    sizes = [len(_words(text)) for text in texts]
    closest += min((abs(n - size), n) for n in sizes)[1]
    allowed: Ngrams = Counter()
    for text in texts:
      allowed |= _ngrams(text)
    for n in range(_MAX_N):
      guessed[n] += max(0, size - n)
    for gram, count in _ngrams(candidate).items():
      matched[len(gram) - 1] += min(count, allowed[gram])
  ratio = (length + tiny) / (closest + small)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  product, scores = 1.0, []
  for n in range(_MAX_N):
    product *= float((matched[n] + tiny) / (guessed[n] + small))
    scores.append(penalty * product ** (1 / (n + 1)))
  return (scores[0], scores[1], scores[2], scores[3])


# --------------------------------------------------------------------- ROUGE
def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    diagonal = 0
    for j, y in enumerate(b, start=1):
      above = row[j]
      row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
      diagonal = above
  return row[-1]


def rouge_l(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> Float[np.ndarray, " N"]:
  """ROUGE-L of each item of tokenised captions."""
  scores = []
  for candidate, texts in zip(candidates, references, strict=True):
    common = [_common_length(candidate, t) for t in texts]
    precision = max(common) / max(1, len(candidate))
    recall = max(c / max(1, len(t)) for c, t in zip(common, texts, strict=True))
    weighted = recall + _BETA**2 * precision
    scores.append(
      (1 + _BETA**2) * precision * recall / weighted if weighted else 0.0
    )
  return np.asarray(scores, np.float64)


def score_captions(
  candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> CaptionScores:
  """All scores of a set of captions.

  Args:
    candidates: one caption per item, as text.
    references: one or more true captions per item.

  Raises:
    ValueError: for an empty set, unequal lengths, or an item without a
      reference that has a word.
  """
  _check(candidates, references)
  ours = [ptb.tokenize(text) for text in candidates]
  theirs = [[ptb.tokenize(text) for text in texts] for texts in references]
  for i, texts in enumerate(theirs):
    if not any(texts):
      raise ValueError(
        f"references[{i}] is {references[i]!r}, without a word to compare "
        "with; leave the item out and count it."
      )
  cider_items = cider_d(ours, theirs)
  rouge_items = rouge_l(ours, theirs)
  return CaptionScores(
    cider=float(cider_items.mean()),
    bleu=bleu(ours, theirs),
    rouge_l=float(rouge_items.mean()),
    cider_items=cider_items,
    rouge_l_items=rouge_items,
  )
