"""What a checkpoint does with texts: captions, answers, probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mico_jax.config import Config
from mico_jax.inference.skipping import Skipped
from mico_jax.inference.writing import TextWriter
from mico_jax.modalities import items
from mico_jax.modalities.items import Search
from mico_jax.models import ContextKV


class ContextBatch(NamedTuple):
  """A batch of contexts.

  Attributes:
    part: the inputs, aligned lists by modality.
    context: of the inputs; its last rows are padding.
    prompt: ids of the questions, padded likewise; None: none.
    rows: places of the inputs among all.
  """

  part: Mapping[str, Sequence[Any]]
  context: ContextKV
  prompt: Any
  rows: Int[np.ndarray, " N"]


class Call(NamedTuple):
  """How a call deals with its inputs, see `OmniModel.embed`."""

  on_error: str = "raise"
  batch_size: int = 0
  progress: bool | None = None


class TextMethods:
  """Methods of `OmniModel` that write texts or weigh given ones.

  Attributes:
    config: of the run that made the checkpoint.
    params: parameters of the model.
  """

  config: Config
  params: Any
  _texts: TextWriter

  def _contexts(
    self,
    inputs: Mapping[str, Any],
    call: Call,
    what: str,
    skipped: Skipped,
    **texts: Sequence[Any] | None,
  ) -> Iterator[ContextBatch]:
    """Batches of the inputs that can be used.

    Args:
      inputs: lists by modality.
      call: how the inputs are dealt with.
      what: is done with them, for the progress bar.
      skipped: takes those that cannot be used.
      **texts: lists aligned with the inputs; those of `question` become
        prompts.

    Raises:
      ValueError: for inputs that the checkpoint does not take, and for lists of
        different lengths.
    """
    raise NotImplementedError

  def caption(
    self,
    *,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    rows: Sequence[int] | None = None,
    on_error: str = "raise",
    batch_size: int = 0,
    progress: bool | None = None,
    **inputs: Any,
  ) -> list[Any]:
    """Writes a caption for each row.

    Options that are None default to the checkpoint's config.generation.

    Args:
      max_new_tokens: largest number of tokens of a caption.
      num_beams: 1 is greedy, at most `mico_jax.config.MAX_BEAMS`.
      length_penalty: exponent of the length in the score of a beam.
      top_p: in (0, 1]: draws each token from the most probable ones whose
        probabilities sum to this (nucleus sampling, one beam); 0: draws none.
      temperature: by which logits are divided before a token is drawn.
      seed: of what is drawn; the same seed and number give the same caption.
      rows: numbers of the inputs for the draws; None: 0, 1, ...
      on_error: "skip": inputs that cannot be used have None for a caption, and
        a warning names them; "raise": they are an error.
      batch_size: see `OmniModel.embed`.
      progress: see `OmniModel.embed`.
      **inputs: aligned lists; several modalities form one context.

    Raises:
      ValueError: for a modality that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose score is not
        finite.
    """
    search = self._texts.captioning(
      self.config.generation,
      max_new_tokens=max_new_tokens,
      num_beams=num_beams,
      length_penalty=length_penalty,
      top_p=top_p,
      temperature=temperature,
      seed=seed,
    )
    call = Call(on_error, batch_size, progress)
    return self._write("caption", search, inputs, call, rows=rows)

  def check_writing(self, **options: Any) -> None:
    """Checks options of `caption`.

    Raises:
      ValueError: for values that are not allowed, or not together.
    """
    self._texts.captioning(self.config.generation, **options)

  def answer(self, *, question: Sequence[str], **inputs: Any) -> list[Any]:
    """Answers a question about each row.

    Args:
      question: one per row; cut to the length of questions in training.
      **inputs: aligned lists, and options as those of `caption`. Answers are as
        long as in training (and as there are positions), with a length penalty
        of 1, unless these say otherwise.

    Raises:
      ValueError: for a modality that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose score is not
        finite.
    """
    names = (*Search._fields, "rows")
    given = {name: inputs.pop(name) for name in names if name in inputs}
    rows = given.pop("rows", None)
    call = Call(
      **{name: inputs.pop(name) for name in Call._fields if name in inputs}
    )
    search = self._texts.answering(self.config.generation, **given)
    questions = items.as_list("text", question)
    return self._write("answer", search, inputs, call, questions, rows=rows)

  def _write(
    self,
    what: str,
    search: Search,
    inputs: Mapping[str, Any],
    call: Call,
    questions: Sequence[str] | None = None,
    *,
    rows: Sequence[int] | None = None,
  ) -> list[Any]:
    """Captions, or answers to questions, of aligned inputs."""
    skipped = Skipped(call.on_error)
    texts: dict[int, str] = {}
    count = 0
    for part, context, prompt, places in self._contexts(
      inputs, call, what, skipped, question=questions, rows=rows
    ):
      numbers = places if rows is None else np.asarray(rows)[places]
      real, size = len(places), context.keys.shape[1]
      written = self._texts.write(
        *(self.params, context, search),
        *(pad_rows(numbers.astype(np.int32), size), prompt),
      )
      sums = np.asarray(written.scores)[:real, 0]
      good = skipped.finite(sums, part, places, f"the {what}'s score")
      ids = np.asarray(written.sequences)[:real, 0]
      skip = 1 if prompt is None else prompt.shape[1]
      found = self._texts.texts(ids, skip)
      texts |= {int(places[i]): found[i] for i in np.flatnonzero(good)}
      count = max(count, int(places[-1]) + 1)
    count = max(count, 1 + max(skipped.errors, default=-1))
    return [texts.get(row) for row in range(count)]

  def text_log_probability(
    self,
    *,
    text: Sequence[str],
    question: Sequence[str] | None = None,
    **inputs: Any,
  ) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """How probable it is that the model writes text i for the inputs i.

    Args:
      text: one per row, without end.
      question: one per row, which the texts answer; None: texts are captions.
      **inputs: aligned lists; several modalities form one context.

    Returns:
      Log-probabilities in nats, and whether greedy decoding writes the text.

    Raises:
      ValueError: for a modality that the checkpoint lacks, or a text that is
        longer than its positions.
      DecodeError: for an input that cannot be read, or whose log-probability is
        not finite.
    """
    texts = items.as_list("text", text)
    asked = None if question is None else items.as_list("text", question)
    skipped = Skipped()
    sums = [np.zeros(0, np.float32)]
    best = [np.zeros(0, bool)]
    for part, context, prompt, rows in self._contexts(
      inputs, Call(), "score", skipped, question=asked, text=texts
    ):
      ids = self._texts.targets([texts[row] for row in rows])
      real, size = len(ids), context.keys.shape[1]
      total, greedy = self._texts.log_probability(
        self.params, context, pad_rows(ids, size), prompt
      )
      skipped.finite(total[:real], part, rows, "the text's log-probability")
      sums.append(total[:real])
      best.append(greedy[:real])
    return np.concatenate(sums), np.concatenate(best)


def pad_rows(
  array: Shaped[np.ndarray, "N ..."], size: int
) -> Shaped[np.ndarray, "M ..."]:
  """The array with its last row repeated until there are `size` rows."""
  missing = size - len(array)
  if missing <= 0:
    return array
  return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
