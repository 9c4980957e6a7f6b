"""The table of evaluators, and what adding one takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, ClassVar

import numpy as np
import pytest
from PIL import Image

from mico_jax.cli.main import main
from mico_jax.config import Config
from mico_jax.config.fields import Range
from mico_jax.docs import tables
from mico_jax.evaluation import EVALUATORS, find_measure
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result
from mico_jax.run.monitor import headlines, metric_log, panels, report
from mico_jax.testing import tiny_checkpoint


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_describes_itself(name):
  evaluator = EVALUATORS[name]
  assert evaluator.name == name
  assert evaluator.summary().endswith(".")
  assert any(measure.headline for measure in evaluator.measures.values())
  for key, measure in evaluator.measures.items():
    assert find_measure(f"{evaluator.title}/va/{key}") == measure
  assert find_measure(f"{evaluator.title}/va/nothing") is None


# ---------------------------------------------------------- adding an evaluator
# What follows would be `mico_jax/evaluation/evaluators/evenness.py`.
@dataclasses.dataclass(frozen=True)
class Evenness(Evaluator):
  """How evenly the embeddings of items fill the sphere, and how many crowd.

  Minus the logarithm of the mean Gaussian potential of pairs of items, and the
  share of items without a neighbour closer than `near`.

  Source: Wang and Isola, arXiv:2005.10242, section 4.
  """

  name: ClassVar = "evenness"
  title: ClassVar = "evenness"
  measures: ClassVar = {
    "potential": Measure(unit="nats"),
    "apart": Measure(),
    "nearest": Measure(unit="", headline=False),
  }
  cheap: ClassVar = True

  # factor on squared distances
  t: Annotated[float, Range(0.01, 100.0)] = 2.0
  # distance of neighbours that crowd
  near: Annotated[float, Range(0.0, 2.0)] = 0.1

  def needs(self, config: Config) -> Needs | None:
    """The evaluated groups, embedded."""
    groups = evaluated_groups(config)
    return Needs(embed=groups) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """Three numbers of each group, means over the items."""
    results = []
    for letters in evaluated_groups(job.config):
      items = job.gallery.usable(letters)
      rows = job.gallery.embeddings[letters][items].astype(np.float64)
      squared = np.maximum(2 - 2 * rows @ rows.T, 0.0)
      np.fill_diagonal(squared, np.inf)
      nearest = np.sqrt(squared.min(axis=1))
      potential = np.exp(-self.t * squared).sum(axis=1) / (len(rows) - 1)
      for name, values in (
        ("potential", -np.log(potential)),
        ("apart", (nearest > self.near).astype(float)),
        ("nearest", nearest),
      ):
        results.append(
          job.protocol.result(
            f"evenness/{letters}/{name}", values, total=job.gallery.count()
          )
        )
    return results


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
  return str(tiny_checkpoint.save_tiny(tmp_path_factory.mktemp("run")))


@pytest.fixture
def run(tmp_path, monkeypatch, checkpoint):
  """Calls `mico-jax evaluate`, which writes into `tmp_path`."""
  # The one line in the table.
  monkeypatch.setitem(EVALUATORS, "evenness", Evenness)
  words = ["evaluate", "--checkpoint", checkpoint, "--check", "off"]
  words += ["--out", str(tmp_path)]
  return lambda *overrides: main(
    [*words, *(f"--config.evaluation.{text}" for text in overrides)]
  )


def test_an_evaluator_is_a_class_and_a_line(run, tmp_path, capsys):
  suite = "suite=text_retrieval,evenness"
  options = "options={'evenness': {'near': 2.0}}"
  assert run(suite, options) == 0
  rows = json.loads((tmp_path / "evaluation.json").read_text())["results"]
  found = {row["name"]: row for row in rows}
  assert list(found)[-3:] == [
    f"evenness/va/{name}" for name in ("potential", "apart", "nearest")
  ]
  potential = found["evenness/va/potential"]
  assert 0 < potential["value"] < 8
  assert (potential["n"], potential["unit"]) == (8, "nats")
  assert potential["headline"]
  assert not found["evenness/va/nearest"]["headline"]
  # With near = 2 every neighbour crowds: the option arrived.
  assert found["evenness/va/apart"]["value"] == 0
  # The table, on stdout and as a file.
  written = (tmp_path / "evaluation.txt").read_text()
  assert written in capsys.readouterr().out + "\n"
  (line,) = (x for x in written.splitlines() if "potential" in x)
  assert f"{potential['value']:.3f} nats" in line
  # The bar chart grows by axes of its own, as nats are no share.
  with Image.open(tmp_path / "evaluation.png") as image:
    height = image.height
  assert run("suite=text_retrieval") == 0
  with Image.open(tmp_path / "evaluation.png") as image:
    assert height > image.height + 100


def test_its_results_are_drawn_in_the_report_of_a_run(run, tmp_path):
  assert run("suite=evenness") == 0
  final = json.loads((tmp_path / "evaluation.json").read_text())
  assert [bar.name for bar in headlines.bars(final)] == ["evenness/va/apart"]
  values = {row["name"]: row["value"] for row in final["results"]}
  with metric_log.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, values, prefix="eval")
  (panel,) = panels.collect(metric_log.read_metrics(tmp_path))
  assert list(panel.curves) == ["evenness/va/potential", "evenness/va/apart"]
  with Image.open(report.write_report(tmp_path)) as image:
    assert np.asarray(image.convert("L")).std() > 10


def test_help_and_pages_list_it(monkeypatch, capsys):
  monkeypatch.setitem(EVALUATORS, "evenness", Evenness)
  assert main(["evaluate", "--help"]) == 0
  text = " ".join(capsys.readouterr().out.split())
  assert Evenness.summary() in text
  for name in EVALUATORS:
    assert name in text
  page = tables.evaluators_page()
  assert f"| `evenness` | {Evenness.summary()} |" in page
  assert "| `evenness` | `t` | `2.0` | 0.01 to 100 |" in page


def test_decoding_and_frames_may_change(checkpoint, tmp_path, capsys):
  words = ["evaluate", "--checkpoint", checkpoint, "--check", "off"]
  words += ["--out", str(tmp_path), "--config.evaluation.suite=text_retrieval"]
  found = []
  for frames in (1, 3):
    assert main([*words, f"--config.data.inputs.video.frames={frames}"]) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    found.append(rows[0]["preprocessing_sha256"])
  assert found[0] != found[1]
  assert main([*words, "--config.generation.num_beams=2"]) == 0
  capsys.readouterr()
  drawn = "--config.generation.top_p=0.9"
  assert main([*words, drawn, "--config.generation.num_beams=2"]) == 2
  assert "num_beams=2 cannot" in capsys.readouterr().err
  assert main([*words, "--config.data.inputs.video.mode=plain"]) == 2
  assert "frames, sampling, fps and stride" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("suite=evennes", "known: omniworld, retrieval, classification"),
    ("suite=evennes", "evenness."),
    ("options={'evenness': {'t': 0.0}}", "t=0.0: expected a number of at"),
    ("options={'evenness': {'tt': 1.0}}", "Did you mean 't'?"),
    ("options={'even': {}}", "evaluation.options names 'even'; known: text"),
  ],
)
def test_mistakes_in_its_options(run, capsys, override, message):
  assert run(override) == 2
  assert message in capsys.readouterr().err


def test_results_bear_the_names_that_it_says(run, monkeypatch):
  suite = "suite=evenness"
  shares = dict.fromkeys(Evenness.measures, Measure())
  monkeypatch.setattr(Evenness, "measures", shares)
  with pytest.raises(ValueError, match=r"potential=\d\.\d+: expected a share"):
    run(suite)
  monkeypatch.setattr(Evenness, "measures", {"apart": Measure()})
  with pytest.raises(ValueError, match=r"'evenness/va/potential'; expected"):
    run(suite)
