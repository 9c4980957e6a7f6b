"""Configs that fine-tune on the data sets of the paper's single-modality table.

`configs/perception/*.py` hold what differs: the samples, what is learned, and
what the paper leaves open. All take the model from `--init` and the paper's
settings of ViT-g, or of ViT-L where the preset is that (arXiv:2406.09412,
appendix): AdamW, cosine, weight decay 1e-8, no warm-up, random erasing of
pictures. The global batch is the paper's and wants many chips; on one, set
`tasks.NAME.batch_size` and `optimizer.learning_rate` together.

Classes, identities and numbers are learned by heads beside nothing else, so no
text is read; the text tower is that of the checkpoint.

Settings of one's own are chosen on training samples, never on what is measured:
`data.sources.train.take=0.9`, `data.sources.test.skip=0.9` and the split of
"train" for "test".
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from mico_jax import config as c
from mico_jax.data.build.sets import manifest
from mico_jax.modalities import MODALITIES, as_configured, by_letter, letters
from mico_jax.models.presets import PRESETS
from mico_jax.train.finetuning import Setting
from mico_jax.train.finetuning import make as finetune

# The configs, in the order of the paper's table.
SETS = (
  "imagenet_1k",
  "kinetics700",
  "nyu_d_scenes",
  "audioset",
  "sysu_mm01",
  "regdb",
  "ego4d_imu",
  "pcqm4mv2",
  "global_temperature",
  "indian_pines",
  "credit_card_fraud",
)
LARGE = "mico_l14"  # preset with the paper's settings of ViT-L
ERASING = {"random_erasing": {"probability": 0.25}}
CROPS = {
  "random_resized_crop": {"scale": (0.08, 1.0)},
  "flip": {},
  **ERASING,
}
# RandAugment stands for the AutoAugment of the paper.
PHOTOS = {**CROPS, "rand_augment": {"num_ops": 2, "magnitude": 9.0}}


@dataclasses.dataclass(frozen=True)
class PaperSet:
  """A row of the table, and what is chosen where the paper is silent.

  Attributes:
    name: of the config, the task, and of what `data build` makes.
    title: of the data set.
    group: letters that learn; "i:h": two that are compared.
    objective: that learns them.
    metric: full name of the measure.
    result: name of the evaluator's result.
    published: the paper's figure of ViT-g, in the unit of the result.
    samples: to train on; 0: the copy says it.
    epochs: over these.
    choice: what the paper leaves open and is chosen here, with its source.
    frames: of a sample.
    lower_is_better: such as an error.
  """

  name: str
  title: str
  group: str
  objective: str
  metric: str
  result: str
  published: float
  samples: int
  choice: str
  epochs: float = 30
  frames: int = 1
  lower_is_better: bool = False


def parse(argument: str, name: str) -> tuple[str, str, str]:
  """Folder, vocabulary and preset of a config's argument.

  Args:
    argument: "FOLDER,VOCABULARY,PRESET"; parts left out take their defaults:
      NAME, vocab.txt, mico_g14.
    name: of the set.

  Raises:
    ConfigError: for an unknown preset, and more parts.
  """
  parts = [part.strip() for part in argument.split(",")]
  if len(parts) > 3:
    raise c.ConfigError(
      f'{argument!r}: expected "FOLDER", "FOLDER,VOCABULARY" or '
      '"FOLDER,VOCABULARY,PRESET".'
    )
  folder, vocabulary, preset = (*parts, "", "")[:3]
  preset = preset or "mico_g14"
  if preset not in PRESETS:
    raise c.ConfigError(
      f"no preset {preset!r} to fine-tune; known: {', '.join(PRESETS)}."
    )
  return folder or name, vocabulary or "vocab.txt", preset


def built_sources(
  name: str, folder: str, *, test: str = "test", **stated: Any
) -> tuple[dict[str, c.SourceConfig], dict[str, Any]]:
  """Sources "train" and "test" of a manifest, and what stands beside it.

  Args:
    name: of the set.
    folder: that `mico-jax data build --protocol NAME` wrote.
    test: split that is measured.
    **stated: further fields of the sources, such as units and rates.

  Raises:
    ConfigError: saying how the manifest is built, if it is not there.
  """
  note = manifest.read_note(name, folder)
  source = c.SourceConfig(
    kind="manifest", path=os.path.join(folder, manifest.MANIFEST), **stated
  )
  return {
    "train": source,
    "test": dataclasses.replace(source, split=test),
  }, note


def make(
  paper: PaperSet,
  sources: Mapping[str, c.SourceConfig],
  *,
  vocabulary: str,
  preset: str,
  learned: Mapping[str, Any],
  samples: int = 0,
  inputs: Mapping[str, c.InputConfig] | None = None,
  augment: Mapping[str, Mapping[str, Any]] | None = None,
  options: Mapping[str, Any] | None = None,
  columns: Mapping[str, Any] | None = None,
) -> c.Config:
  """The config of a set.

  Args:
    paper: the row.
    sources: "test" is measured, all others are trained on, each as often as it
      has samples.
    vocabulary: WordPiece file, or "omniworld" for the shipped tokenizer.
    preset: the model, whose sizes `--init` gives.
    learned: options of the objective.
    samples: to train on, where the copy says it; 0: those of the row.
    inputs: how each modality reaches the encoder; those left out as usual.
    augment: transforms of the training samples.
    options: of evaluators, by name.
    columns: of tables.
  """
  config = _finetuned(
    paper, preset, vocabulary, samples or paper.samples, augment or {}, options
  )
  shown = {
    key: dataclasses.replace(
      config.data.inputs.get(key, c.InputConfig()), frames=paper.frames
    )
    for key in _keys(paper.group)
  }
  (task,) = config.tasks.values()
  learn = dict.fromkeys((name for name in sources if name != "test"), 1)
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data,
      sources=dict(sources),
      inputs={**shown, **(inputs or {})},
      columns=columns or {},
    ),
    tasks={
      paper.name: dataclasses.replace(
        task, sources=learn, temperature=1.0 if len(learn) > 1 else 0.0
      )
    },
    objectives=c.ObjectivesConfig(options={paper.objective: dict(learned)}),
  )


def _finetuned(
  paper: PaperSet,
  preset: str,
  vocabulary: str,
  samples: int,
  augment: Mapping[str, Mapping[str, Any]],
  options: Mapping[str, Any] | None,
) -> c.Config:
  """The paper's settings of a preset, for a row; see `make`."""
  model = PRESETS[preset]
  large = preset == LARGE
  rate = 0.2 if large else 0.25
  if model.vision.encoder == "vit":
    vision = dataclasses.replace(model.vision, drop_path_rate=rate)
    model = dataclasses.replace(model, vision=vision)
  setting = Setting(
    paper.group,
    4e-3 if large else 5e-5,
    4096 if large else 512,
    90 if large else paper.epochs,
    samples,
  )
  return finetune(
    paper.name,
    setting,
    "",
    vocabulary,
    _with_heads(model, paper.group),
    objectives={paper.objective: (paper.group,)},
    max_length={"default": 20},
    augment=augment,
    evaluation={"suite": "heads", "groups": (), "options": options or {}},
    optimizer={
      "name": "adamw",
      "schedule": "cosine",
      "weight_decay": 0.05 if large else 1e-8,
      "warmup": 5 / 90 if large else 0.0,
    },
  )


def _keys(group: str) -> list[str]:
  """The modalities of a group."""
  return [by_letter(x).key for x in letters(group)]


def _with_heads(model: c.ModelConfig, group: str) -> c.ModelConfig:
  """A model with the contexts and contrastive heads of a group."""
  heads, tables = dict.fromkeys(model.heads), dict(model.frame_table)
  for key in _keys(group):
    modality = MODALITIES[key]
    tables.setdefault(modality.context_type, 1)
    if as_configured(modality, model) is modality:
      heads[modality.letter] = None
  return dataclasses.replace(model, heads=tuple(heads), frame_table=tables)
