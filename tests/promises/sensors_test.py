"""Every sensor of the table in one model: files, batches, use, export."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax import config as config_lib
from mico_jax.cli import main as cli
from mico_jax.config import ConfigError, DataConfig, InputConfig
from mico_jax.data.batches import batch_spec
from mico_jax.data.input_checks import check_stated
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.references import FileReader
from mico_jax.data.samples import load_inputs
from mico_jax.data.sheet import draw_sheet
from mico_jax.data.sources import open_source
from mico_jax.data.storage import Storage
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.modalities import MODALITIES, CustomEmbedding, DecodeError
from mico_jax.testing.tiny_checkpoint import save_tiny, tiny_config
from mico_jax.testing.tiny_data import manifest_source, write_manifest

KEYS = (
  *("thermal", "xray", "imu", "biosignal", "timeseries", "signal"),
  *("pointcloud", "hyperspectral", "tabular", "graph"),
)
# Those without code in common; a model of all takes long to compile.
MODELLED = ("thermal", "imu", "timeseries", "pointcloud", "hyperspectral")
MODELLED += ("tabular", "graph")
COUNT = 4
UNITS = {
  **{"thermal": "kelvin", "xray": "monochrome1,12", "imu": "g,deg/s"},
  "hyperspectral": "reflectance,10000",
  "graph": "features",
}
COLUMNS = {
  "tabular": (("age", 20.0, 30.0, 50.0), ("work", "field", "mill"), ("id",))
}
CHANNELS = {
  "timeseries": "oil,load",
  "hyperspectral": "450,550,1600",
  "graph": "mass,edge.length",
}


def graph_of(seed: int) -> dict[str, list]:
  """A path of some nodes, with a feature of each node and edge."""
  rng = np.random.default_rng(seed)
  count = 4 + seed
  return {
    "node_features": rng.standard_normal((count, 1)).tolist(),
    "edge_index": [[*range(count - 1)], [*range(1, count)]],
    "edge_features": rng.random((count - 1, 1)).tolist(),
  }


def write_sensors(folder: pathlib.Path) -> pathlib.Path:
  """A manifest of four samples that have all sensors; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  names = MODALITIES["imu"].channels
  for i in range(COUNT):
    np.save(folder / f"t{i}.npy", 290 + 10 * rng.random((20, 24), np.float32))
    counts = rng.integers(0, 4096, (20, 24)).astype(np.uint16)
    Image.fromarray(counts).save(folder / f"x{i}.png")
    rows = [",".join(("time", *names))]
    for k, row in enumerate(rng.standard_normal((60, 6))):
      rows.append(",".join(map(str, (k / 20, *row))))
    (folder / f"g{i}.json").write_text(json.dumps(graph_of(i)))
    (folder / f"m{i}.csv").write_text("\n".join(rows))
    beat = rng.standard_normal((300, 2))
    np.savez(
      folder / f"b{i}.npz", values=beat, rate=250, unit="mV",
      channels=np.array(["II", "V1"]),
    )  # fmt: skip
  lines = ["date,load,oil"]
  for k in range(200):
    date = f"2020-01-{1 + k // 24:02d} {k % 24:02d}:00"
    lines.append(f"{date},{k},{k % 5}")
  (folder / "grid.csv").write_text("\n".join(lines))
  np.savez(folder / "u.npz", x=rng.standard_normal((COUNT, 50, 3)))
  cube = rng.integers(0, 9999, (9, 9, 3))
  np.savez(folder / "y.npz", cube=cube.astype(np.uint16))
  np.savez(folder / "p.npz", x=rng.standard_normal((COUNT, 90, 3)))
  people = [
    f"{i},{('mill', 'field')[i % 2]},{20 + 9 * i}" for i in range(COUNT)
  ]
  (folder / "k.csv").write_text("\n".join(["id,work,age", *people]))
  return write_manifest(
    folder,
    COUNT,
    thermal=[f"t{i}.npy" for i in range(COUNT)],
    xray=[f"x{i}.png" for i in range(COUNT)],
    imu=[f"m{i}.csv" for i in range(COUNT)],
    biosignal=[f"b{i}.npz" for i in range(COUNT)],
    timeseries=[f"grid.csv:rows[{40 * i}:{40 * i + 40}]" for i in range(COUNT)],
    signal=[f"u.npz:x[{i}]" for i in range(COUNT)],
    pointcloud=[f"p.npz:x[{i}]" for i in range(COUNT)],
    hyperspectral=[f"y.npz:cube@{i},{2 * i}" for i in range(COUNT)],
    graph=[f"g{i}.json" for i in range(COUNT - 1)] + [graph_of(COUNT)],
    tabular=[
      {"age": 20, "work": None},
      *(f"k.csv:rows[{i}:{i + 1}]" for i in range(1, COUNT)),
    ],
  )


def sensors_config(manifest: pathlib.Path, keys=KEYS, **source):
  base = tiny_config()
  heads = "".join(MODALITIES[key].letter for key in keys)
  narrow = {"depth": 1, "width": 16}
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, **narrow),
    text=dataclasses.replace(base.model.text, **narrow),
    heads=("t", *heads),
    frame_table=dict.fromkeys(keys, 1) | {"imu": 2},
  )
  stated = {"units": UNITS, "channels": CHANNELS} | source
  data = dataclasses.replace(
    base.data,
    sources={"all": manifest_source(manifest, **stated)},
    inputs={
      "thermal": InputConfig(frames=1),
      "imu": InputConfig(frames=2, mode="jitter"),
    },
    columns={k: v for k, v in COLUMNS.items() if k in keys},
  )
  task = dataclasses.replace(
    base.tasks["av"],
    sources={"all": 1},
    batch_size=COUNT,
    objectives={"contrastive": (f"t{heads}",)},
  )
  return dataclasses.replace(
    base,
    model=model,
    data=data,
    tasks={"sensors": task},
    evaluation=dataclasses.replace(
      base.evaluation, source="all", size=COUNT, batch_size=COUNT, groups=("m",)
    ),
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(folder of the files, config, workdir) of a checkpoint."""
  folder = tmp_path_factory.mktemp("sensors")
  path = write_sensors(folder)
  save_tiny(folder / "w", config=sensors_config(path, MODELLED))
  return folder, sensors_config(path), folder / "w"


@pytest.fixture(scope="module")
def model(saved):
  return mico_jax.load(str(saved[2]), check="fast")


def test_every_sensor_is_in_the_batches(saved):
  _, config, _ = saved
  inputs = batch_spec(config, "sensors")["inputs"]
  tokenizer = make_tokenizer(config.data.tokenizer)
  for _, _, batch in Pipeline(config, tokenizer, end_step=1):
    for key in KEYS:
      embedding = MODALITIES[key].embedding
      size = (16, 16)
      if isinstance(embedding, CustomEmbedding):
        size = embedding.frame
      array = batch["inputs"][key]
      assert array.shape == (COUNT, 2 if key == "imu" else 1, *size)
      assert (array.shape, array.dtype) == (
        inputs[key].shape,
        inputs[key].dtype,
      )
      assert len({row.tobytes() for row in array}) == COUNT


def test_files_and_arrays_embed_alike(saved, model):
  folder = saved[0]
  motion = np.loadtxt(folder / "m0.csv", delimiter=",", skiprows=1)[:, 1:]
  si = motion * np.repeat([9.80665, np.pi / 180], 3)
  grid = (folder / "grid.csv").read_text().splitlines()[:41]
  (folder / "part.csv").write_text("\n".join(grid))
  heat = np.load(folder / "t0.npy")
  spectra = np.load(folder / "y.npz")["cube"][1:8, 1:8].astype(np.float32)
  np.save(folder / "y0.npy", spectra.astype(np.uint16))
  cloud = np.load(folder / "p.npz")["x"][0]
  np.save(folder / "p0.npy", cloud)
  named = f"features@@mass,edge.length:{folder}/g0.json"
  pairs = {
    "imu": (f"g,deg/s:{folder}/m0.csv", (si, 20.0)),
    "thermal": (f"kelvin:{folder}/t0.npy", heat - np.float32(273.15)),
    # The columns are those of the run, in its order.
    "timeseries": (f"{folder}/part.csv", f"@@oil,load:{folder}/part.csv"),
    "pointcloud": (f"{folder}/p0.npy", 3 * cloud[::-1] + 5),
    "hyperspectral": (f"reflectance,10000:{folder}/y0.npy", spectra / 1e4),
    "graph": (f"features:{folder}/g0.json", named),
    "tabular": ({"age": 38, "work": "mill"}, np.array([38.0, 1.0])),
  }
  found = model.embed(**{k: list(v) for k, v in pairs.items()})
  for key, (one, two) in found.items():
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(one, two, atol=2e-3, err_msg=key)
  other = model.embed(imu=[f"g,rad/s:{folder}/m0.csv"])["imu"]
  assert np.abs(other - found["imu"][:1]).max() > 1e-2
  for value, words in (
    (f"{folder}/m0.csv", "imu without a unit"),
    (motion.astype(int), "imu without a unit; write m/s2,rad/s@RATE:FILE"),
    (motion[:, :3], "expected 6 channels"),
  ):
    with pytest.raises(DecodeError, match=words):
      model.embed(imu=[value])
  for key, value, words in (
    ("hyperspectral", spectra[..., :2] / 1e4, "2 bands, .* as in training"),
    ("hyperspectral", f"counts@@450,550:{folder}/y0.npy", "trained on 3, 450"),
    ("graph", f"features@@mass:{folder}/g0.json", "trained on 2, mass"),
    ("graph", "smiles:CCO", "state no channels|molecule|mode 'plain'"),
    ("tabular", {"age": 3, "work": "sea"}, "unknown category 'sea'"),
    ("tabular", {"age": 3, "eyes": "blue"}, "no column 'work'"),
  ):
    with pytest.raises(DecodeError, match=words):
      model.embed(**{key: [value]})


def test_command_line(saved, capsys, tmp_path):
  folder, config, workdir = saved
  files = [f"imu:g,deg/s:{folder}/m0.csv", f"thermal:kelvin:{folder}/t0.npy"]
  argv = ["--checkpoint", str(workdir), "--check", "fast", "--json"]
  assert cli.main(["score", *argv, "--text", "a cube", *files]) == 0
  scores = json.loads(capsys.readouterr().out)
  assert files[0] in json.dumps(scores)
  source = [f"--unit={key}={unit}" for key, unit in UNITS.items()]
  source += [f"--channels={key}={names}" for key, names in CHANNELS.items()]
  out = str(tmp_path / "v.npz")
  manifest = str(folder / "manifest.jsonl")
  some = ["--modality", "imu", "--out", out]
  assert cli.main(["embed", *argv, *some, *source, manifest]) == 0
  report = json.loads(capsys.readouterr().out)
  assert (report["items"], report["failed"]) == (COUNT, 0)
  build = ["data", "build", "--manifest", manifest, *source, "--json", "--out"]
  assert cli.main([*build, str(tmp_path / "records")]) == 0
  built = json.loads(capsys.readouterr().out)["source"]
  assert built["units"] == UNITS
  assert built["channels"] == CHANNELS
  spec = config_lib.from_dict(built, config_lib.SourceConfig)
  first, again = (
    config,
    dataclasses.replace(
      config, data=dataclasses.replace(config.data, sources={"all": spec})
    ),
  )
  for i in range(COUNT):
    one, two = (
      load_inputs(c, open_source(c, "all").record(i), "all", KEYS, None)
      for c in (first, again)
    )
    for key in KEYS:
      np.testing.assert_array_equal(one[key], two[key])


def test_a_sheet_draws_them(saved, tmp_path):
  path = draw_sheet(saved[1], tmp_path / "sheet.png", n=2)
  picture = np.asarray(Image.open(path))
  assert picture.shape[1] > 7 * 112  # two frames of motion, one of the others
  assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_they_export_to_pytorch(saved, model, tmp_path):
  pytest.importorskip("torch")
  folder, _, workdir = saved
  source = export.open_source(str(workdir))
  exporter.write(source, tmp_path, export.ExportReport("torch", {}))
  gaps = exporter.compare(source, tmp_path)
  for key in MODELLED:
    mine = [gap for name, gap in gaps.items() if f"embed/{key}/" in name]
    assert len(mine) == 6
    assert max(mine) <= export.TOLERANCE, key
  other = exporter.load_module(tmp_path).MiCo.from_folder(tmp_path)
  files = {
    "imu": [f"g,deg/s:{folder}/m0.csv"],
    "timeseries": [f"{folder}/grid.csv"],
    "thermal": [f"kelvin:{folder}/t0.npy"],
    "pointcloud": [np.load(folder / "p.npz")["x"][1]],
    "hyperspectral": [np.full((3, 3, 3), 0.3, np.float32)],
    "graph": [f"features:{folder}/g1.json"],
    "tabular": [{"age": None, "work": "mill"}, {"age": 60, "work": ""}],
  }
  want, got = model.embed(**files), other.embed(**files)
  for key in files:
    np.testing.assert_allclose(want[key], got[key].detach(), atol=1e-5)


def test_sources_state_what_is_needed(saved):
  manifest = saved[0] / "manifest.jsonl"
  for source, words in (
    ({"units": {"heat": "kelvin"}}, "units names 'heat'"),
    ({"units": {"thermal": "fahrenheit"}}, r"known: celsius, kelvin"),
    ({"rates": {"thermal": 5.0}}, "rates names 'thermal'"),
    ({"channels": {"imu": "acc_x,acc_x"}}, "each once"),
    (
      {"depth_unit": "metre", "units": {"depth": "millimetre"}},
      "states two units of depth",
    ),
  ):
    config = sensors_config(manifest, **source)
    with pytest.raises(ConfigError, match=words):
      open_source(config, "all")
  config = sensors_config(manifest, units={})
  with pytest.raises(ConfigError, match=r"units\['thermal'\] is empty; therm"):
    check_stated(config, "all", "thermal")
  check_stated(config, "all", "imu")  # files may say it
  config = sensors_config(manifest, units={"thermal": "picture"})
  inputs = {"thermal": InputConfig(frames=1, mode="metric")}
  data = dataclasses.replace(config.data, inputs=inputs)
  config = dataclasses.replace(config, data=data)
  with pytest.raises(ConfigError, match=r"data\.inputs\.thermal\.mode"):
    check_stated(config, "all", "thermal")
  stored = config_lib.to_dict(config)
  for name in ("units", "rates", "channels"):  # of before there were such
    del stored["data"]["sources"]["all"][name]
  again = config_lib.from_dict(stored, config_lib.Config)
  assert again.data.sources["all"].units == {}
  depth = sensors_config(manifest, units={"depth": "millimetre"})
  check_stated(depth, "all", "depth")


def test_rows_of_a_table_are_a_table(tmp_path):
  (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n\n3,4\n5,6")
  reader = FileReader(str(tmp_path), "", Storage.of(DataConfig()), "all")
  assert reader.read("t.csv:rows[1:3]") == b"a,b\n3,4\n5,6\n"
  assert reader.spans("t.csv:rows[1:3]") == []
  for rows in ("2:4", "1:1"):
    with pytest.raises(DecodeError, match="the table has 3 rows"):
      reader.read(f"t.csv:rows[{rows}]")
  with pytest.raises(DecodeError, match="leaves the folder"):
    reader.read("../t.csv:rows[0:1]")
