"""The table of data sources, and what adding one takes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from typing import Annotated, ClassVar

import pytest

from mico_jax.cli.main import main
from mico_jax.config import (
  ConfigError,
  EvaluationConfig,
  SourceConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.config.fields import Choice
from mico_jax.data.records import Record, id_of, make_record, media_fields
from mico_jax.data.references import FileReader, parent
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import SOURCES, SourceKind, open_source
from mico_jax.data.storage import Storage
from mico_jax.docs import tables
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.testing.tiny_data import config_of, manifest_source, png


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_describes_itself(kind):
  source = SOURCES[kind]
  assert source.kind == kind
  assert source.summary()
  fields = {f.name for f in dataclasses.fields(SourceConfig)}
  assert set(source.reads) <= fields


# ------------------------------------------------------------- adding a source
# What follows would be `mico_jax/data/sources/csv_table.py`.
@dataclasses.dataclass(frozen=True)
class CsvOptions:
  """How the table is written."""

  # between the cells of a row
  delimiter: Annotated[str, Choice(",", ";")] = ","


class CsvSource(SourceKind):
  """A CSV file with a header: one sample per row, files beside it."""

  kind: ClassVar = "csv"
  Options: ClassVar = CsvOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the whole table."""
    data = storage.read(config.path, limited=False)
    self.sha256 = hashlib.sha256(data).hexdigest()
    self._config = config
    self._files = FileReader(parent(config.path), config.root, storage, name)
    options = self.options(name, config)
    text = io.StringIO(data.decode("utf-8"))
    self._rows = list(csv.DictReader(text, delimiter=options.delimiter))

  def __len__(self) -> int:
    """Number of rows."""
    return len(self._rows)

  def record(self, index: int) -> Record:
    """The record of a row."""
    fields = self._rows[index]
    media = {
      key: lambda path=fields[field]: self._files.read(path)
      for key, field in media_fields(self._config).items()
      if fields.get(field)
    }
    return make_record(
      id_of(fields, f"row{index}"), fields, media, self._config
    )


@pytest.fixture
def spec(tmp_path, monkeypatch) -> SourceConfig:
  # The one line in the table.
  monkeypatch.setitem(SOURCES, "csv", CsvSource)
  rows = ["id;photo;caption"]
  for i in range(8):
    (tmp_path / f"{i}.png").write_bytes(png(30 * i))
    rows.append(f"p{i};{i}.png;a wall, {i} of 8 bright")
  path = tmp_path / "set.csv"
  path.write_text("\n".join(rows) + "\n")
  return SourceConfig(
    kind="csv",
    path=str(path),
    fields={"image": "photo"},
    options={"delimiter": ";"},
  )


def test_a_source_is_a_class_and_a_line(spec, tmp_path):
  config = config_of(a=spec)
  record = open_source(config, "a").record(3)
  inputs = load_inputs(config, record, "a", ("image",), None)
  assert record.id == "p3"
  assert record.captions == {"omni": ("a wall, 3 of 8 bright",)}
  assert (inputs["image"] == 90).all()
  # A run trains on it by its config alone, which pins what it found.
  base = tiny_config()
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1, width=16),
    text=dataclasses.replace(base.model.text, depth=1, width=16),
    heads=("t", "v"),
  )
  config = dataclasses.replace(
    base,
    model=model,
    data=dataclasses.replace(base.data, sources={"photos": spec}),
    tasks={
      "one": TaskConfig(
        sources={"photos": 1},
        batch_size=8,
        objectives={"contrastive": ("ti",)},
      )
    },
    train=TrainConfig(steps=2, log_every=1, tensorboard=False),
    evaluation=EvaluationConfig(),
  )
  summary = pretrain(config, tmp_path / "run")
  assert summary.step == 2
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  losses = [x["loss"] for x in map(json.loads, lines) if "loss" in x]
  assert len(losses) == 2
  assert losses[0] > 0
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  assert stored["data"]["sources"]["photos"]["count"] == 8
  assert stored["data"]["sources"]["photos"]["options"] == {"delimiter": ";"}


def test_help_messages_and_pages_list_it(spec, capsys):
  assert main(["data", "--help"]) == 0
  text = " ".join(capsys.readouterr().out.split())
  assert f"csv {CsvSource.summary()}" in text
  page = tables.sources_page()
  assert f"| `csv` | {CsvSource.summary()} |  |" in page
  assert '| `csv` | `delimiter` | `\',\'` | ",", ";" |' in page
  with pytest.raises(ConfigError, match=r"known: omniworld, manifest.*, csv"):
    setup.resolve(config_of(a=dataclasses.replace(spec, kind="csw")))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"options": {"delimiter": "|"}}, "delimiter='|': expected one of \",\""),
    ({"options": {"delimeter": ";"}}, "Did you mean 'delimiter'?"),
    ({"key_dot": "last"}, "only kind='webdataset' or 'files' or"),
    ({"seed": 3}, "seed=3: only kind='omniworld' reads it"),
  ],
)
def test_what_a_kind_does_not_read_is_refused(spec, changes, message):
  config = config_of(a=dataclasses.replace(spec, **changes))
  with pytest.raises(ConfigError) as error:
    open_source(config, "a")
  assert message in str(error.value)
  assert "data.sources.a" in str(error.value)


def test_kinds_without_options_say_so(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"id": "0", "caption": "x"}\n')
  source = manifest_source(path, options={"delimiter": ";"})
  with pytest.raises(ConfigError, match="unknown config key 'delimiter'"):
    open_source(config_of(a=source), "a")
