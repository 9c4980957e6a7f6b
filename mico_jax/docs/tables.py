"""Writes the reference pages of this folder from the tables of the code.

    python -m mico_jax.docs.tables

A test fails when the pages of `PAGES` differ from the code. The description of
a config field is its comment in `mico_jax/config/`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

from mico_jax import config
from mico_jax.config.loading import call
from mico_jax.data.build.sets import SETS
from mico_jax.data.sources import SOURCES
from mico_jax.docs.config_page import config_page, field_comments, options_of
from mico_jax.docs.markdown import HEAD, first_paragraph, markdown_table
from mico_jax.docs.models_page import models_page
from mico_jax.evaluation import EVALUATORS, SUITES
from mico_jax.evaluation.protocols import (
  TASKS,
  BenchmarkProtocol,
  load_protocol,
  protocols,
)
from mico_jax.modalities import MODALITIES, Modality, by_letter, letters
from mico_jax.modalities.sampling import SAMPLINGS
from mico_jax.modalities.transforms import TRANSFORMS
from mico_jax.objectives import FIELDS, OBJECTIVES
from mico_jax.objectives.forecasting import WindowConfig
from mico_jax.train import perception


def modalities_page() -> str:
  """The page about modalities and their preprocessing modes."""
  text = f"{HEAD}\n# Modalities\n\n"
  text += markdown_table(
    ("key", "letter", "kind", "array", "unit", "files", "stated", "notes"),
    (
      (
        name,
        m.letter,
        m.kind,
        f"{m.spec.dtype} [{' '.join(m.spec.dims)}]",
        m.spec.unit,
        " ".join(m.extensions) or f"`{name}:FILE`",
        _stated(m),
        m.notes,
      )
      for name, m in MODALITIES.items()
    ),
  )
  text += (
    "\nWhat is stated stands in `data.sources.NAME.units`, `rates` and "
    "`channels` (`--unit`, `--rate`, `--channels` of the commands), or before "
    "a file: `KEY:UNIT@RATE@CHANNELS:FILE`, rates in Hz. A file that says it "
    "itself needs no statement, and must not contradict one. Columns of tables "
    "are stated once, `data.columns`, with the quantiles and categories of the "
    "training part: `python -m mico_jax.data.columns FILE.csv`.\n\nA manifest "
    "names a file or a part of one: `set.tar:member`, `a.npz:name`, "
    "`a.npz:name[7]`, `t.csv:rows[0:336]`, `cube.npz:name@ROW,COLUMN`. A JSON "
    "object in its place is the content of a .json file; values of the unit "
    "`smiles` stand themselves.\n"
  )
  text += "\n## Preprocessing modes\n\n`data.inputs.<key>.mode`:\n\n"
  text += markdown_table(
    ("modality", "mode", "in evaluation", "what it does"),
    (
      (
        modality,
        f"**{name}** (default{for_units})" if default else name,
        mode.eval_mode or name,
        mode.description,
      )
      for modality, m in MODALITIES.items()
      if m.kind == "knowledge"
      for name, mode in m.modes.items()
      for default, for_units in (_for_units(m, name),)
    ),
  )
  return text


def _stated(modality: Modality) -> str:
  """What sources state of a modality."""
  parts = [f"unit: {', '.join(f'`{u}`' for u in modality.units)}"]
  parts = parts if modality.units else []
  parts += ["rate"] if modality.rate else []
  parts += ["channels"] if modality.named else []
  parts += ["columns"] if modality.check_columns else []
  text = "; ".join(parts)
  return f"{text} (or by the file)" if text and modality.in_file else text


def _for_units(modality: Modality, mode: str) -> tuple[bool, str]:
  """Whether a new run takes a mode unless told, and of which units."""
  if not modality.native_modes:
    return mode == modality.default_mode, ""
  units = [unit for unit, m in modality.native_modes.items() if m == mode]
  return bool(units), f": {', '.join(units)}"


def transforms_page() -> str:
  """The page about transforms that augment training samples."""
  reads = lambda stage: ", ".join(
    key
    for key, modality in MODALITIES.items()
    if any(stage in mode.stages for mode in modality.modes.values())
  )
  text = f"{HEAD}\n# Transforms\n\n"
  text += (
    "`tasks.NAME.augment` names the transforms of a task's training samples "
    'with their numbers, `{"random_resized_crop": {"scale": (0.8, 1.0)}, '
    '"flip": {}}`; they are applied in the order of this table. Evaluation and '
    "inference have none. Draws are keyed by seed, epoch, sample and "
    "transform; what is seen (`view`) is drawn once for all pictures of a "
    "sample, so that depth and normals stay aligned. Modes that draw by "
    "themselves (`crop_flip`, `spec_augment`, ...) refuse transforms that "
    "would draw again.\n\n"
  )
  text += markdown_table(
    ("name", "what it does", "stage", "modalities"),
    (
      (f"`{name}`", cls.summary(), cls.stage, reads(cls.stage))
      for name, cls in TRANSFORMS.items()
    ),
  )
  text += options_of("tasks.*.augment", TRANSFORMS)
  text += "\n## Frames\n\n`data.inputs.<key>.sampling`:\n\n"
  return text + markdown_table(
    ("name", "which frames or slices"),
    (
      (f"`{name}`", first_paragraph(function.__doc__))
      for name, function in SAMPLINGS.items()
    ),
  )


def objectives_page() -> str:
  """The page about objectives."""
  options = {n: o.options() for n, o in OBJECTIVES.items() if n not in FIELDS}
  # What stands in their options by group.
  parts = {"targets.GROUP": config.TargetConfig, "windows.GROUP": WindowConfig}
  text = f"{HEAD}\n# Objectives\n\n" + markdown_table(
    ("name", "what it is", "needs", "options"),
    (
      (
        f"`{name}`",
        first_paragraph(cls.__doc__),
        ", ".join(sorted(cls.needs)),
        f"`objectives.{name}` in [config](config.md)"
        if name in FIELDS
        else ", ".join(
          f"`{option}`" for option in field_comments(cls.options())
        ),
      )
      for name, cls in OBJECTIVES.items()
    ),
  )
  return text + options_of("objectives.options", options | parts)


def evaluators_page() -> str:
  """The page about evaluators and suites."""
  text = f"{HEAD}\n# Evaluators\n\n"
  text += "`evaluation.suite` names these, joined by commas.\n\n## Suites\n\n"
  text += markdown_table(
    ("suite", "evaluators"),
    (
      (f"`{name}`", ", ".join(f"`{e}`" for e in suite.evaluators))
      for name, suite in SUITES.items()
    ),
  )
  text += "\n## Evaluators\n\n"
  text += markdown_table(
    ("name", "what it measures", "results", "source", "while training"),
    (
      (
        f"`{name}`",
        first_paragraph(cls.__doc__),
        f"`{cls.title}/.../` {', '.join(cls.measures)}",
        cls.source_kind or "any",
        "yes" if cls.cheap else "no",
      )
      for name, cls in EVALUATORS.items()
    ),
  )
  return text + options_of("evaluation.options", EVALUATORS)


_PROTOCOLS = """
A protocol states what is measured on a benchmark, and how; it is a TOML file in
`mico_jax/evaluation/protocols/` without any code
(`mico_jax.evaluation.protocols.schema` lists its fields), or one of your own.

```bash
mico-jax evaluate --list
mico-jax evaluate --protocol msrvtt_1ka     # how to get its files
mico-jax evaluate --protocol msrvtt_1ka --data MSRVTT/ --checkpoint runs/demo
mico-jax data build --protocol msrvtt_1ka --from MSRVTT/ --out shards/
```

Samples whose media are missing are left out of the gallery, their texts are no
queries, and n/N beside each number counts both; `missing wrong` is value * n /
N. A retrieval counts every caption as one query that its own item alone
answers. Shards of `data build` give the same numbers. The hash of the ids of
your copy stands in the result; a copy whose list differs from the protocol's is
refused, unless `--other-split` is given. What differs from the protocol is
listed, and its metrics end in `_changed`. Some protocols name parts to train
on, of which `data build --split PART` makes shards; [configs](perception.md)
fine-tune on them.
"""


def _figures(protocol: BenchmarkProtocol) -> str:
  """Published numbers of the main metric."""
  found = sorted(
    (f for f in protocol.figures if f.metric == protocol.metric),
    key=lambda f: -f.value,
  )
  return "; ".join(
    f"{f.value:.3f} {f.model}, {f.setting} ({f.source})" for f in found
  )


def protocols_page() -> str:
  """The page about the protocols of benchmarks."""
  text = f"{HEAD}\n# Benchmarks\n{_PROTOCOLS}"
  entries = [(name, load_protocol(name)) for name in protocols()]
  for task, (evaluator, _) in TASKS.items():
    text += f"\n## {task.replace('_', ' ')} (evaluator `{evaluator}`)\n\n"
    text += markdown_table(
      ("name", "what", "group", "frames", "texts", "re-ranked", "samples and "
       "where their list is", "metric", "published"),
      (
        (
          f"`{name}`",
          f"[{p.title}]({p.copy.source}); {p.clip}",
          p.group,
          ", ".join(f"{key} {n}" for key, n in p.frames.items()),
          p.texts.rule,
          p.rerank or "",
          f"{_samples(p)}: {p.split.ids}",
          f"`{p.metric}`",
          _figures(p),
        )
        for name, p in entries
        if p.task == task
      ),
    )  # fmt: skip
  notes = [f"- `{name}`: {p.note}\n" for name, p in entries if p.note]
  return text + "\n## Choices\n\n" + "".join(notes)


def _samples(protocol: BenchmarkProtocol) -> str:
  """Number of samples and questions."""
  split = protocol.split
  count = " or ".join(map(str, split.count))
  asked = f"{split.questions} questions" if split.questions else ""
  return ", ".join(x for x in (count, asked) if x)


_PERCEPTION = """
Configs that fine-tune a checkpoint on the data sets of the paper's
single-modality table, where it names the data but hardly a protocol. Each reads
your copy of the official files; of those marked with *, `data build` makes a
manifest first, which names parts of the files and copies none that it can name.

```bash
mico-jax pretrain --config perception/imagenet_1k:COPY --init CKPT
mico-jax data build --protocol sysu_mm01            # how to get its files
mico-jax data build --protocol sysu_mm01 --from COPY
mico-jax pretrain --config perception/sysu_mm01:COPY --init CKPT
```

Behind commas stand the vocabulary of the checkpoint and its preset, vocab.txt
and mico_g14 unless told. Learning rate, batch and epochs are those of the
paper's appendix, and want many chips. Figures of the paper are those of ViT-g;
none of them was measured here. Choose settings of your own on training samples:
`--config.data.sources.train.take=0.9 --config.data.sources.test.skip=0.9
--config.data.sources.test.split=train`.
"""


def perception_page() -> str:
  """The page about configs of the paper's single-modality table."""
  text = f"{HEAD}\n# Data sets of the paper\n{_PERCEPTION}\n"
  papers = [call(f"perception/{name}", "paper")[1] for name in perception.SETS]
  text += markdown_table(
    ("config", "data set", "modality", "objective", "metric", "result",
     "paper", "chosen here"),
    (
      (
        f"`perception/{p.name}`{'*' if p.name in SETS else ''}",
        p.title,
        " and ".join(by_letter(x).key for x in letters(p.group)),
        f"`{p.objective}`",
        p.metric,
        f"`{p.result}`",
        p.published,
        p.choice,
      )
      for p in papers
    ),
  )  # fmt: skip
  text += "\n## Layouts\n"
  for p in papers:
    known = SETS.get(p.name)
    copy = load_protocol(p.name).copy if known is None else known
    lines = "\n".join(copy.layout)
    text += f"\n`{p.name}`, from <{copy.source}>"
    text += f"; {known.note}" if known and known.note else ""
    text += f":\n\n```\n{lines}\n```\n"
  return text


def sources_page() -> str:
  """The page about kinds of data sources."""
  text = f"{HEAD}\n# Data sources\n\n`data.sources.NAME.kind`:\n\n"
  text += markdown_table(
    ("kind", "what it reads", "fields of its own"),
    (
      (
        f"`{kind}`",
        first_paragraph(cls.__doc__),
        ", ".join(f"`{f}`" for f in cls.reads),
      )
      for kind, cls in SOURCES.items()
    ),
  )
  text += (
    "\nThe other fields of [data.sources.NAME](config.md) are for every kind.\n"
  )
  options = {kind: cls.Options for kind, cls in SOURCES.items()}
  return text + options_of("data.sources.*.options", options, "kind")


PAGES: Mapping[str, Callable[[], str]] = {
  "modalities.md": modalities_page,
  "transforms.md": transforms_page,
  "objectives.md": objectives_page,
  "evaluators.md": evaluators_page,
  "protocols.md": protocols_page,
  "perception.md": perception_page,
  "sources.md": sources_page,
  "models.md": models_page,
  "config.md": config_page,
}


def main() -> None:
  """Writes every page beside this file."""
  folder = pathlib.Path(__file__).parent
  for name, make in PAGES.items():
    (folder / name).write_text(make(), encoding="utf-8")
    print(folder / name)


if __name__ == "__main__":
  main()
