"""Checkpoints in lmms-eval: captions, answers and choices by its evaluator."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import math
import textwrap

import numpy as np
import pytest
from PIL import Image

from mico_jax.inference.omni_model import load
from mico_jax.testing import media, tiny_data
from mico_jax.testing.tiny_checkpoint import save_tiny, tiny_config

pytest.importorskip("lmms_eval")
datasets = pytest.importorskip("datasets")
from lmms_eval import evaluator, models  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

from mico_jax.harnesses import lmms_manifest  # noqa: E402
from mico_jax.harnesses.lmms_model import MiCoWriter  # noqa: E402

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of the harness
]
QUESTIONS = ("what is it?", "which color?", "what is it made of?", "who?")
CHOICES = ("cube", "a small blue ball", "cone")
AROUND = "\nAnswer the question using a single word or phrase."


def _image(i: int) -> Image.Image:
  return Image.open(io.BytesIO(tiny_data.png(30 + 50 * i)))


def _sound(i: int) -> dict:
  rate = 8000 + 4000 * i
  wave = np.sin(np.arange(rate) * (0.05 + 0.1 * i)).astype(np.float32)
  return {"array": wave, "sampling_rate": rate}


class _Set:
  """Four items, and tasks over them as files of lmms-eval."""

  def __init__(self, root):
    self.root = root
    self.clips = []
    for i in range(4):
      path = root / f"{i}.mp4"
      path.write_bytes(media.file_of("mp4", media.greys([30 + 50 * i] * 6)))
      self.clips.append(str(path))

  def task(self, name: str, targets, settings: str, **columns) -> None:
    """A task whose file has `settings` beside the columns of its set."""
    columns |= {"question": list(QUESTIONS), "target": list(targets)}
    table = datasets.Dataset.from_dict(columns)
    if "image" in columns:
      table = table.cast_column("image", datasets.Image())
    table.to_parquet(self.root / f"{name}.parquet")
    (self.root / f"{name}.yaml").write_text(
      textwrap.dedent(f"""\
        task: {name}
        dataset_path: parquet
        dataset_kwargs:
          data_files: {{test: {self.root / name}.parquet}}
          cache_dir: {self.root / "cache"}
        test_split: test
        doc_to_target: target
        """)
      + textwrap.dedent(settings)
    )

  def run(self, names, model, args: str = ""):
    """Results of tasks by the harness, and the texts of each."""
    found = evaluator.simple_evaluate(
      model=model,
      model_args=args,
      tasks=names,
      batch_size=3,
      task_manager=TaskManager(
        include_path=str(self.root), include_defaults=False
      ),
      bootstrap_iters=0,
    )
    texts = {
      name: [row["filtered_resps"][0] for row in found["samples"][name]]
      for name in names
    }
    return found["results"], texts


@pytest.fixture(scope="module")
def items(tmp_path_factory):
  return _Set(tmp_path_factory.mktemp("lmms"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp("checkpoint") / "run"
  config = tiny_config()
  lengths = {"default": 40, "question": 12, "answer": 6}
  tokenizer = dataclasses.replace(config.data.tokenizer, max_length=lengths)
  data = dataclasses.replace(config.data, tokenizer=tokenizer)
  save_tiny(path, config=dataclasses.replace(config, data=data))
  return str(path)


@pytest.fixture(scope="module")
def model(checkpoint):
  return load(checkpoint, check="off")


EXACT = """\
output_type: generate_until
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CAPTION = 'doc_to_text: "Provide a one-sentence caption."\n' + EXACT
PICTURE = "doc_to_visual: image\n"


def test_lmms_eval_finds_the_model_by_its_entry_point():
  entries = importlib.metadata.entry_points(group="lmms_eval.models")
  ours = [e for e in entries if e.name == "mico"]
  if not ours:
    pytest.skip("mico_jax lies in the path, and is not installed")
  assert ours[0].load()() == lmms_manifest()
  assert models.get_model("mico") is MiCoWriter


def test_captions_of_pictures_and_sounds(items, model, checkpoint, capsys):
  images = [_image(i) for i in range(4)]
  greedy = model.caption(image=images, num_beams=1, max_new_tokens=6)
  items.task(
    "pictures",
    [*greedy[:3], "nothing like it"],
    CAPTION + PICTURE + "generation_kwargs: "
    "{max_new_tokens: 6, temperature: 0, num_beams: 1, image_detail: low}\n",
    image=[
      {"bytes": tiny_data.png(30 + 50 * i), "path": None} for i in range(4)
    ],
  )
  sounds = [(s["array"], s["sampling_rate"]) for s in map(_sound, range(4))]
  drawn = {"max_new_tokens": 6, "top_p": 0.9, "temperature": 0.8, "seed": 2}
  items.task(
    "sounds",
    ["x"] * 4,
    CAPTION + "doc_to_visual: sound\n"
    "generation_kwargs: {max_new_tokens: 6, temperature: 0.8, top_p: 0.9}\n",
    sound=[_sound(i) for i in range(4)],
  )
  args = f"pretrained={checkpoint},mode=caption,seed=2"
  models.MODEL_REGISTRY_V2.register_manifest(lmms_manifest(), overwrite=True)
  found, texts = items.run(["pictures", "sounds"], "mico", args)
  assert texts["pictures"] == [text.strip() for text in greedy]
  assert found["pictures"]["exact_match,none"] == 0.75
  expected = model.caption(audio=sounds, num_beams=1, **drawn)
  assert texts["sounds"] == [text.strip() for text in expected]
  said = capsys.readouterr().err
  assert "pictures: captions; not read: 'Provide a one-sentence" in said
  assert "settings that are not used: image_detail" in said
  assert "was not trained on captioning" in said


def test_answers_about_clips(items, model, capsys):
  given = model.answer(question=list(QUESTIONS), video=items.clips)
  targets = [given[0], "never", given[2], "never"]
  task = (
    EXACT
    + "doc_to_visual: !function clips.of\ndoc_to_text: !function clips.ask\n"
    + "generation_kwargs: {num_beams: 1}\n"
    + 'lmms_eval_specific_kwargs: {default: {pre_prompt: "Q: ", '
    + f"post_prompt: {AROUND!r}}}}}\n".replace("'", '"')
  )
  (items.root / "clips.py").write_text(
    "def of(doc):\n  return [doc['clip']]\n"
    "def ask(doc, kwargs):\n"
    "  return kwargs['pre_prompt'] + doc['question'] + kwargs['post_prompt']\n"
  )
  items.task("clips", targets, task, clip=items.clips)
  writer = MiCoWriter(model, "answer", batch_size=3)
  found, texts = items.run(["clips"], writer)
  assert texts["clips"] == [text.strip() for text in given]
  assert found["clips"]["exact_match,none"] == 0.5
  said = capsys.readouterr().err
  assert (
    f"read as {QUESTIONS[0]!r}, cut from {'Q: ' + QUESTIONS[0] + AROUND!r}"[:20]
    in said
  )


def test_choices_and_targets_by_their_probability(items, model):
  images = [_image(i) for i in range(4)]
  value = np.stack(
    [
      model.text_log_probability(
        text=[choice] * 4, question=list(QUESTIONS), image=images
      )[0]
      for choice in CHOICES
    ],
    axis=1,
  )
  best = value.argmax(axis=1)
  right = [*best[:3], (best[3] + 1) % 3]
  pictures = [
    {"bytes": tiny_data.png(30 + 50 * i), "path": None} for i in range(4)
  ]
  items.task(
    "choices",
    [int(i) for i in right],
    PICTURE + "doc_to_text: question\noutput_type: multiple_choice\n"
    f"doc_to_choice: {list(CHOICES)!r}\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    image=pictures,
  )
  items.task(
    "targets",
    ["cube"] * 4,
    PICTURE + "doc_to_text: question\noutput_type: loglikelihood\n"
    "process_results: !function weigh.of\n"
    "metric_list: [{metric: perplexity, aggregation: perplexity, "
    "higher_is_better: false}]\n",
    image=pictures,
  )
  (items.root / "weigh.py").write_text(
    "def of(doc, results):\n  return {'perplexity': results[0][0]}\n"
  )
  writer = MiCoWriter(model, "answer")
  found, _ = items.run(["choices", "targets"], writer)
  assert found["choices"]["acc,none"] == 0.75
  assert found["targets"]["perplexity,none"] == pytest.approx(
    math.exp(-value[:, 0].mean()), rel=1e-4
  )


def test_what_cannot_be_served_is_said(model):
  for options in ({}, {"mode": "chat"}, {"mode": "answer", "max_pixels": 1}):
    with pytest.raises(
      ValueError, match="expected pretrained=CHECKPOINT,mode="
    ):
      MiCoWriter(model, **options)
  writer = MiCoWriter(model, "answer")
  writer.task_dict = {"t": {"test": [None]}}

  class Request:
    def __init__(self, *inputs, **settings):
      self.args = ("who?", settings, lambda doc: list(inputs), 0, "t", "test")

  for inputs, message in (
    ((), "t, document 0: has no input"),
    ((_image(0), _image(1)), "2 inputs, several of them image"),
    ((3,), "an input is int; expected a picture"),
    (("a.xyz",), "xyz"),
    (("depth:mm:a.png", "text:x"), "text"),
  ):
    with pytest.raises(ValueError, match=message):
      writer.generate_until([Request(*inputs)])
  with pytest.raises(ValueError, match="3 beams cannot"):
    writer.generate_until([Request(_image(0), temperature=1.0, num_beams=3)])
  with pytest.raises(ValueError, match="has rounds"):
    writer.generate_until_multi_round([])
  request = Request()
  request.args = ("", "cube")
  with pytest.raises(ValueError, match="acc_mutual_info"):
    writer.loglikelihood([request])
  writer._world_size = 2
  with pytest.raises(ValueError, match="start one"):
    writer.generate_until([])


def test_texts_end_where_the_task_says(model):
  writer = MiCoWriter(model, "caption")
  writer.task_dict = {"t": {"test": [None]}}
  whole = model.caption(image=[_image(0)], num_beams=1)[0]
  end = whole[2:4]

  class Request:
    args = (
      "Describe it.",
      {"until": [end, "\n"], "temperature": 0, "num_beams": 1},
      lambda doc: [_image(0)],
      *(0, "t", "test"),
    )

  assert writer.generate_until([Request()]) == [whole[: whole.find(end)]]
