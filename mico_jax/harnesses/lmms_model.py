r"""Checkpoints as models of lmms-eval: captions and answers.

    python -m lmms_eval --model mico --tasks coco2017_cap_val \
      --model_args pretrained=runs/demo,mode=caption
    python -m lmms_eval --model mico --tasks vqav2_val \
      --model_args pretrained=runs/demo,mode=answer

lmms-eval finds the model by its entry point wherever both are installed. A
checkpoint follows no instructions, so the run says what is written: captions of
the inputs, for which the text of a task is not read, or answers to that text.
What the task puts around its question for chat models (`pre_prompt` and
`post_prompt`) is cut off. Both are told on stderr, once per task.

A request has one input of each modality: a picture, a clip, a sound, or a clip
and a sound. Only the frames of a clip are read. Tokens are drawn where the task
asks for a temperature above 0; what it leaves open (beams, length) is as in the
checkpoint. Several rounds and requests without any input are refused.

Tasks with given choices weigh each by its log-probability. lmms-eval takes the
choice of the smallest value, as its own models return losses; so do we there. A
single target gets its log-probability. Run with lmms-eval 0.7.3, which needs
filelock below 4, and whose evaluator makes a text of a pair of numbers unless
it comes as a result of generation; so it comes as one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mico_jax import extras

try:
  from lmms_eval.api.instance import GenerationResult
  from lmms_eval.api.model import lmms
  from tqdm import tqdm
except ImportError as error:
  raise ImportError(
    f"lmms-eval cannot be loaded ({error}): {extras.install('lmms')}.",
    name=error.name,
  ) from error

from mico_jax.harnesses.inputs import as_input
from mico_jax.inference.omni_model import OmniModel, load
from mico_jax.modalities import file_spec

MODES = ("caption", "answer")
# Settings of a task that say how a text is written; `until` ends it.
_TAKEN = {
  *("max_new_tokens", "num_beams", "length_penalty", "top_p", "temperature"),
  *("do_sample", "until"),
}


class _Request(NamedTuple):
  """A request of lmms-eval.

  Attributes:
    inputs: modality -> input.
    text: the question, without what stands around it; "": none.
    number: of the request in its task, for what is drawn: a document that is
      asked again draws anew.
    options: of `OmniModel.caption`, as sorted items.
    until: the text ends before any of these.
  """

  inputs: Mapping[str, Any]
  text: str
  number: int = 0
  options: tuple[tuple[str, Any], ...] = ()
  until: tuple[str, ...] = ()


class MiCoWriter(lmms):
  """A checkpoint that writes for lmms-eval."""

  is_simple = True

  def __init__(
    self,
    pretrained: OmniModel | str = "",
    mode: str = "",
    seed: int = 0,
    batch_size: Any = None,
    **kwargs: Any,
  ):
    """Loads a checkpoint.

    Args:
      pretrained: a loaded checkpoint, or the path of one.
      mode: "caption": captions, the text of a task is not read; "answer":
        answers to it.
      seed: of drawn tokens.
      batch_size: requests at a time; None or "auto": the checkpoint's.
      **kwargs: `device` and `max_batch_size` are not used; JAX chooses.

    Raises:
      ValueError: for another mode, an unknown argument, or several processes.
    """
    super().__init__()
    unknown = set(kwargs) - {"device", "max_batch_size"}
    if unknown or mode not in MODES or not pretrained:
      raise ValueError(
        f"model_args with {mode=}, pretrained={pretrained!r} and "
        f"{', '.join(sorted(unknown)) or 'nothing else'}: expected "
        f"pretrained=CHECKPOINT,mode={'|'.join(MODES)} and maybe seed=N."
      )
    self.model = load(pretrained) if isinstance(pretrained, str) else pretrained
    self.mode, self.seed = mode, int(seed)
    automatic = batch_size in (None, "auto")
    self.size = self.model.batch_size if automatic else int(batch_size)
    trained = {
      objective
      for task in self.model.config.tasks.values()
      for objective in task.objectives
    }
    needed = "captioning" if mode == "caption" else "question_answering"
    if needed not in trained:
      _tell(f"the checkpoint was not trained on {needed}.")

  # --------------------------------------------------------------- lmms-eval
  def generate_until(self, requests: list[Any]) -> list[str]:
    """Captions or answers, one per request.

    Raises:
      ValueError: for a request that the checkpoint cannot serve.
    """
    self._check_alone()
    self._tell_tasks(requests)
    counts: dict[str, int] = {}
    read = []
    for request in requests:
      task = request.args[-2]
      counts[task] = counts.get(task, -1) + 1
      found = self._request(*request.args)
      read.append(found._replace(number=counts[task]))
    return self._written(read)

  def loglikelihood(self, requests: list[Any]) -> list[Any]:
    """Losses of given choices, or log-probabilities of single targets, in nats.

    Each with whether greedy decoding writes it, as a pair in a
    `GenerationResult`.

    Raises:
      ValueError: for a request that the checkpoint cannot serve.
    """
    self._check_alone()
    read, texts, signs = [], [], []
    for request in requests:
      if len(request.args) != 6:
        raise ValueError(
          "a task asks how probable a text is without any input "
          "(acc_mutual_info); drop that metric."
        )
      context, target, *rest = request.args
      signs.append(1.0 if callable(target) else -1.0)
      text = target(self._document(*rest[1:])) if callable(target) else target
      if not isinstance(text, str):
        raise ValueError(f"a target is {text!r:.80}; expected a text.")
      texts.append(text)
      read.append(self._request(context, {}, *rest))
    self._tell_tasks(requests)
    found: list[Any] = [None] * len(read)
    for rows in self._batches(read, lambda request: ()):
      given = self._lists(read[i] for i in rows)
      if self.mode == "answer":
        given["question"] = [read[i].text for i in rows]
      total, best = self.model.text_log_probability(
        text=[texts[i] for i in rows], **given
      )
      for i, value, greedy in zip(rows, total, best, strict=True):
        pair: Any = (signs[i] * float(value), bool(greedy))
        found[i] = GenerationResult(text=pair)
    return found

  def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
    """Refused.

    Raises:
      ValueError: always.
    """
    del requests
    raise ValueError("the checkpoint writes one text; this task has rounds.")

  # ---------------------------------------------------------------- requests
  def _check_alone(self) -> None:
    if self.world_size > 1:
      raise ValueError(
        f"{self.world_size} processes of lmms-eval: start one, JAX computes in "
        "it."
      )

  def _document(self, number: Any, task: str, split: str) -> Any:
    return self.task_dict[task][split][number]

  def _request(
    self,
    context: str,
    settings: Mapping[str, Any],
    to_inputs: Any,
    number: Any,
    task: str,
    split: str,
  ) -> _Request:
    """Reads a request of lmms-eval.

    Raises:
      ValueError: naming task and document, if it cannot be served.
    """
    try:
      found = to_inputs(self._document(number, task, split))
      inputs = self._inputs(found)
      options, until = _options(settings)
    except ValueError as error:
      raise ValueError(f"{task}, document {number}: {error}") from error
    if options.get("top_p"):
      options["seed"] = self.seed
    text = _question(context, to_inputs) if self.mode == "answer" else ""
    return _Request(inputs, text, 0, tuple(sorted(options.items())), until)

  def _inputs(self, found: Any) -> dict[str, Any]:
    """The inputs of a document by modality."""
    values = found if isinstance(found, (list, tuple)) else [found]
    inputs: dict[str, Any] = {}
    for value in values:
      key = _modality(value)
      self.model.preparer.check_key(key)
      if key in inputs:
        raise ValueError(
          f"{len(values)} inputs, several of them {key}; expected one."
        )
      inputs[key] = as_input(self.model, key, value)
    if not inputs:
      raise ValueError("has no input; a text alone cannot be answered.")
    return inputs

  def _batches(
    self, read: Sequence[_Request], kind: Callable[[_Request], Any]
  ) -> Iterable[list[int]]:
    """Numbers of requests that go together, with a bar of progress."""
    alike: dict[Any, list[int]] = {}
    for i, request in enumerate(read):
      alike.setdefault((tuple(request.inputs), kind(request)), []).append(i)
    with tqdm(total=len(read), desc=f"mico: {self.mode}") as bar:
      for rows in alike.values():
        for start in range(0, len(rows), self.size):
          yield rows[start : start + self.size]
          bar.update(len(rows[start : start + self.size]))

  @staticmethod
  def _lists(requests: Iterable[_Request]) -> dict[str, Any]:
    lists: dict[str, Any] = {}
    for request in requests:
      for key, value in request.inputs.items():
        lists.setdefault(key, []).append(value)
    return lists

  def _written(self, read: Sequence[_Request]) -> list[str]:
    """The texts of requests."""
    texts = [""] * len(read)
    for rows in self._batches(read, lambda request: request.options):
      given = self._lists(read[i] for i in rows)
      given |= dict(read[rows[0]].options)
      given["rows"] = [read[i].number for i in rows]
      if self.mode == "answer":
        questions = [read[i].text for i in rows]
        written = self.model.answer(question=questions, **given)
      else:
        written = self.model.caption(**given)
      for i, text in zip(rows, written, strict=True):
        texts[i] = _cut(text, read[i].until)
    return texts

  def _tell_tasks(self, requests: Sequence[Any]) -> None:
    """Says what of the text of each task is read, and of its settings."""
    contexts: dict[str, set[str]] = {}
    first: dict[str, Any] = {}
    for request in requests:
      task = request.args[-2]
      contexts.setdefault(task, set()).add(request.args[0])
      first.setdefault(task, request)
    for task, request in first.items():
      context, settings, to_inputs, *_ = request.args
      asked = _question(context, to_inputs)
      if self.mode == "caption":
        _tell(f"{task}: captions; not read: {context!r:.120}")
        if len(contexts[task]) > 1:
          _tell(
            f"{task} has {len(contexts[task])} different texts, which are not "
            "read; if they are questions, use mode=answer."
          )
      elif asked != context:
        _tell(f"{task}: read as {asked!r:.120}, cut from {context!r:.240}")
      if isinstance(settings, Mapping) and set(settings) - _TAKEN:
        unused = ", ".join(sorted(set(settings) - _TAKEN))
        _tell(f"{task}: settings that are not used: {unused}")


def _tell(text: str) -> None:
  print(f"mico: {text}", file=sys.stderr)


def _question(context: str, to_inputs: Any) -> str:
  """The text of a request without what the task puts around it."""
  task = getattr(to_inputs, "__self__", None)
  around = getattr(task, "lmms_eval_specific_kwargs", None)
  around = around if isinstance(around, Mapping) else {}
  text = context.removeprefix(str(around.get("pre_prompt") or ""))
  return text.removesuffix(str(around.get("post_prompt") or "")).strip()


def _modality(value: Any) -> str:
  """The modality of what a task gives as an input.

  Raises:
    ValueError: for what cannot be told.
  """
  if isinstance(value, Image.Image):
    return "image"
  if hasattr(value, "get_frames_at"):  # torchcodec.decoders.VideoDecoder
    return "video"
  if hasattr(value, "get_all_samples"):  # torchcodec.decoders.AudioDecoder
    return "audio"
  if isinstance(value, Mapping) and "sampling_rate" in value:
    return "audio"
  name = value.get("path") if isinstance(value, Mapping) else value
  if isinstance(name, str):
    return file_spec(name).key
  raise ValueError(
    f"an input is {type(value).__name__}; expected a picture, a sound or the "
    "path of a file. Requests without inputs cannot be served."
  )


def _options(
  settings: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Options of `OmniModel.caption`, and where a text ends."""
  given = {k: v for k, v in settings.items() if v is not None}
  until = given.get("until", ())
  until = (until,) if isinstance(until, str) else tuple(until)
  options = {
    name: given[name]
    for name in ("max_new_tokens", "num_beams", "length_penalty")
    if name in given
  }
  temperature = given.get("temperature", 1.0 if given.get("do_sample") else 0.0)
  options["top_p"] = 0.0
  if given.get("do_sample", True) and temperature > 0:
    options["top_p"] = float(given.get("top_p", 1.0))
    options["temperature"] = float(temperature)
  return options, tuple(text for text in until if text)


def _cut(text: str, until: Sequence[str]) -> str:
  """The text before the first of any of the ends."""
  places = np.asarray([text.find(end) for end in until], np.int64)
  found = places[places >= 0]
  return text[: int(found.min())] if len(found) else text
