"""Models of Hugging Face `transformers`, as functions over a batch.

Texts are written greedily or by the beams of the model's own settings, never
drawn: equal inputs give equal texts, whenever they are asked for.

Since version 5 `transformers` has no pipeline for captioners that take no chat
(BLIP, GIT, ViT-GPT2), and its pipeline of chats about pictures goes one by one;
those two are called by their processors here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.config import ConfigError
from mico_jax.data.build.models import Batch
from mico_jax.modalities import DecodeError

# Model types whose maps are metres whatever their settings say, or are nearness
# up to scale and shift.
_METRIC = ("zoedepth", "glpn", "depth_pro")
_INVERSE = ("dpt",)


@dataclasses.dataclass(frozen=True)
class Task:
  """A kind of model.

  Attributes:
    takes: "picture" (uint8 [Y, X, 3]), "sound" (samples, rate) or "text".
    load: (name, options) -> a function over a batch.
    asks: it needs `options["prompt"]`.
    writes: it gives texts.
  """

  takes: str
  load: Callable[[str, Mapping[str, Any]], Batch]
  asks: bool = False
  writes: bool = True


def load_pipeline(name: str, options: Mapping[str, Any]) -> Batch:
  """The model of a name, or of a folder.

  Args:
    name: of the model.
    options: `task`, a key of `TASKS`, and what else its stage says: `prompt`,
      `max_new_tokens`, `device`, of depth `values`.

  Returns:
    A function of a list of what the task takes; it gives texts, or maps float32
    [Y, X] for "depth-estimation".

  Raises:
    ConfigError: for a model that is not of this task, or gives other values;
      for an old `transformers`.
  """
  import transformers

  if int(transformers.__version__.partition(".")[0]) < 5:
    raise ConfigError(
      f"hf:{name} needs transformers 5 or later, this is "
      f"{transformers.__version__}: pip install 'transformers>=5'."
    )
  return TASKS[options["task"]].load(name, options)


def check_task(stage: str, takes: str, options: Any) -> None:
  """Checks `task` and `prompt` of a stage up front.

  Args:
    stage: for messages.
    takes: what it has to give; see `Task`.
    options: of the stage, with a model `hf:...`.

  Raises:
    ConfigError: for an unknown task, or none, or no prompt where one is needed.
  """
  known = [n for n, t in TASKS.items() if t.takes == takes and t.writes]
  if options.task not in known:
    raise ConfigError(
      f"{stage}.task={options.task!r}: say what {options.model} is, one of "
      f"{', '.join(known)} (--set {stage}.task=...)."
    )
  asks, prompt = TASKS[options.task].asks, getattr(options, "prompt", "")
  if asks and not prompt:
    raise ConfigError(
      f"{options.task} needs a prompt (--set {stage}.prompt=...)."
    )
  if prompt and not asks:
    raise ConfigError(
      f"{stage}.prompt: {options.task} takes none; models that do are "
      f"{', '.join(name for name in known if TASKS[name].asks)}."
    )


def _pipeline(name: str, options: Mapping[str, Any]) -> Any:
  import transformers

  settings = {"device": options["device"]} if options.get("device") else {}
  return transformers.pipeline(options["task"], model=name, **settings)


def _padding(tokenizer: Any) -> Any:
  """The tokenizer with a token that fills batches; a mask covers it."""
  if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.eos_token
  return tokenizer


def _words(options: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of writing."""
  most = options.get("max_new_tokens")
  return {"do_sample": False, **({"max_new_tokens": most} if most else {})}


def _speech(name: str, options: Mapping[str, Any]) -> Batch:
  """Whisper and others that write what they hear."""
  pipe, more = _pipeline(name, options), {}
  _padding(pipe.tokenizer)
  if pipe.model.can_generate():
    more["generate_kwargs"] = _words(options)
  elif options.get("max_new_tokens"):
    raise ConfigError(f"hf:{name} writes no tokens; leave max_new_tokens 0.")

  def call(items: Sequence[Any]) -> list[Any]:
    sounds = [{"raw": x, "sampling_rate": rate} for x, rate in items]
    results = pipe(sounds, batch_size=len(sounds), **more)
    return [_text(result, options["task"]) for result in results]

  return call


def _language(name: str, options: Mapping[str, Any]) -> Batch:
  """Language models; one with a chat template is asked in it."""
  pipe = _pipeline(name, options)
  tokenizer = _padding(pipe.tokenizer)
  tokenizer.padding_side = "left"
  chats = bool(tokenizer.chat_template)

  def call(items: Sequence[str]) -> list[Any]:
    asked: list[Any] = list(items)
    if chats:
      asked = [[{"role": "user", "content": text}] for text in items]
    results = pipe(
      asked, return_full_text=False, batch_size=len(asked), **_words(options)
    )
    return [_text(result, options["task"]) for result in results]

  return call


def _depth(name: str, options: Mapping[str, Any]) -> Batch:
  """Estimators of depth; pictures of one size go together."""
  pipe = _pipeline(name, options)
  gives = _values(pipe.model.config)
  if gives and options["values"] != gives:
    raise ConfigError(
      f"hf:{name} gives {gives!r}, depth.values is {options['values']!r}: "
      f"--set depth.values={gives}."
    )

  def call(items: Sequence[np.ndarray]) -> list[Any]:
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
      sizes.setdefault(item.shape, []).append(i)
    maps: dict[int, Any] = {}
    for some in sizes.values():
      pictures = [Image.fromarray(items[i]) for i in some]
      results = pipe(pictures, batch_size=len(pictures))
      for i, result in zip(some, results, strict=True):
        maps[i] = np.asarray(result["predicted_depth"])
    return [maps[i] for i in range(len(items))]

  return call


def _values(config: Any) -> str:
  """What the settings of a model of depth say of its maps; "": nothing."""
  kind = getattr(config, "depth_estimation_type", "")
  if kind == "metric" or config.model_type in _METRIC:
    return "metre"
  return (
    "inverse" if kind == "relative" or config.model_type in _INVERSE else ""
  )


def _device(options: Mapping[str, Any]) -> Any:
  """The device that is asked for, or a GPU where there is one."""
  from transformers.utils import is_torch_cuda_available

  found = "cuda" if is_torch_cuda_available() else "cpu"
  return options.get("device") or found


def _captioner(name: str, options: Mapping[str, Any]) -> Batch:
  """BLIP, GIT, ViT-GPT2 and others that take a picture and no chat."""
  import transformers

  see: Any = transformers.AutoImageProcessor.from_pretrained(name)
  words: Any = transformers.AutoTokenizer.from_pretrained(name)
  kind: Any = transformers.AutoModelForImageTextToText
  model: Any = kind.from_pretrained(name).to(_device(options)).eval()

  def call(items: Sequence[Any]) -> list[str]:
    pictures = [Image.fromarray(item) for item in items]
    inputs = dict(see(images=pictures, return_tensors="pt"))
    ids = _written(model, inputs, options)
    return words.batch_decode(ids, skip_special_tokens=True)

  return call


def _chat(name: str, options: Mapping[str, Any]) -> Batch:
  """Models of chats about a picture or a sound, which are asked the prompt."""
  import transformers

  sees = TASKS[options["task"]].takes == "picture"
  key = "image" if sees else "audio"
  kind: Any = (
    transformers.AutoModelForImageTextToText
    if sees
    else transformers.AutoModelForMultimodalLM
  )
  process: Any = transformers.AutoProcessor.from_pretrained(name)
  if not getattr(process, "chat_template", None):
    raise ConfigError(
      f"hf:{name} has no chat template, which task={options['task']} needs; "
      "one that takes no chat is task=image-to-text."
    )
  process.tokenizer.padding_side = "left"
  model: Any = kind.from_pretrained(name).to(_device(options)).eval()
  extractor = getattr(process, "feature_extractor", None)
  rate = getattr(extractor, "sampling_rate", None)

  def content(item: Any) -> Any:
    if sees:
      return Image.fromarray(item)
    samples, given = item
    if rate is not None and rate != given:
      raise ConfigError(f"hf:{name} hears {rate} Hz; the stage has {given} Hz.")
    return samples

  def call(items: Sequence[Any]) -> list[str]:
    question = {"type": "text", "text": options["prompt"]}
    chats = [
      [{"role": "user", "content": [{"type": key, key: content(x)}, question]}]
      for x in items
    ]
    inputs = process.apply_chat_template(
      chats,
      add_generation_prompt=True,
      tokenize=True,
      return_dict=True,
      processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    ids = _written(model, dict(inputs), options)
    given = inputs["input_ids"]
    # Decoders alone repeat what they were given, encoders with decoders do not.
    if (
      ids.shape[1] >= given.shape[1]
      and (ids[:, : given.shape[1]] == given).all()
    ):
      ids = ids[:, given.shape[1] :]
    return process.tokenizer.batch_decode(ids, skip_special_tokens=True)

  return call


def _written(
  model: Any, inputs: dict[str, Any], options: Mapping[str, Any]
) -> Any:
  """The tokens that a model writes to a batch, on the CPU."""
  placed = {
    key: value.to(model.device, model.dtype)
    if value.is_floating_point()
    else value.to(model.device)
    for key, value in inputs.items()
  }
  return model.generate(**placed, **_words(options)).cpu()  # no gradients


def _text(result: Any, task: str) -> str:
  """The text of what a pipeline gives for one input.

  Raises:
    DecodeError: if there is none.
  """
  if isinstance(result, list) and len(result) == 1:
    result = result[0]
  if isinstance(result, Mapping):
    for key in ("generated_text", "text"):
      if isinstance(result.get(key), str):
        return result[key]
  raise DecodeError(f"the pipeline {task} gave no text but {result!r:.80}.")


TASKS: dict[str, Task] = {
  "image-to-text": Task("picture", _captioner),
  "image-text-to-text": Task("picture", _chat, asks=True),
  "automatic-speech-recognition": Task("sound", _speech),
  "audio-text-to-text": Task("sound", _chat, asks=True),
  "text-generation": Task("text", _language),
  "depth-estimation": Task("picture", _depth, writes=False),
}
