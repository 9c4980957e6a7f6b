"""What a stranger hands to the command line: one line, no traceback."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from jax.errors import JaxRuntimeError

from mico_jax import cli, extras
from mico_jax.checkpoint import manifest, restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli.main import main
from mico_jax.config import SourceConfig
from mico_jax.data.sources import ManifestSource
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError
from mico_jax.plan import compiled, topology
from mico_jax.printing import escaped, escaped_json, shown
from mico_jax.testing import tiny_checkpoint, tiny_data

CLI = pathlib.Path(cli.__file__).parent
RED = "\x1b[31mred\u202e\x9b.png"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("door")
  tiny_checkpoint.save_tiny(root / "run")
  return root


@pytest.fixture
def here(saved, tmp_path, monkeypatch) -> pathlib.Path:
  """A folder with a copy of the small files of a checkpoint, `run`."""
  import shutil

  shutil.copytree(saved / "run", tmp_path / "run")
  (tmp_path / "a.png").write_bytes(tiny_data.png(3))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def step(folder: pathlib.Path) -> pathlib.Path:
  return folder / "run" / "checkpoints" / "1"


def rewrite(folder: pathlib.Path, change: Any) -> None:
  """Puts another manifest there, with a hash that fits it."""
  place = step(folder) / "manifest"
  value = json.loads((place / manifest.MANIFEST).read_text())
  text = json.dumps(change(value)).encode()
  (place / manifest.MANIFEST).write_bytes(text)
  (place / manifest.MANIFEST_HASH).write_text(manifest.sha256(text))


def mistake(capsys, *argv: str, status: int = 2) -> str:
  """The one line on stderr of a command that must fail."""
  assert main(argv) == status
  found = capsys.readouterr()
  (line,) = found.err.splitlines()
  assert line.startswith("mico-jax: error: ")
  assert line.isprintable()
  return line


# --------------------------------------------------------- files of a manifest
@pytest.mark.parametrize(
  "name",
  ["../../../../../etc/hostname", "/etc/hostname", "tokenizer/../../x", "./a",
   "a//b", "", "..", ".hidden", "a\\..\\b", "a\nb", "\u2025/x", "proc/\x00"],
)  # fmt: skip
def test_names_of_files_stay_below_the_manifest(here, capsys, name):
  pathlib.Path(here / "secret").write_text("secret")

  def add(value):
    value["files"][name] = manifest.sha256(b"secret")
    return value

  rewrite(here, add)
  line = mistake(capsys, "inspect", "--checkpoint", "run")
  assert "expected plain names below manifest/" in line
  with pytest.raises(CheckpointError, match="plain names"):
    restore.open_checkpoint("run", strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_links_do_not_lead_out(here, strict):
  file = next((step(here) / "manifest" / "tokenizer").iterdir())
  (here / "outside").write_bytes(file.read_bytes())
  file.unlink()
  file.symlink_to(here / "outside")
  with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
    restore.open_checkpoint("run", strict=strict)


def test_a_linked_checkpoint_opens(here):
  (here / "link").symlink_to(here / "run")
  assert restore.open_checkpoint("link").step == 1


def manifests() -> dict[str, Any]:
  found: dict[str, Any] = {
    "null": lambda v: None,
    "list": lambda v: [v],
    "number": lambda v: 3,
    "empty": lambda v: {},
  }
  fields = ("step", "items", "files", "config_sha256", "data_sha256",
            "tokenizer", "preprocessing", "versions", "topology", "metrics",
            "self_check_of")  # fmt: skip
  for name in fields:
    found[f"no {name}"] = lambda v, n=name: {
      k: x for k, x in v.items() if k != n
    }
    for wrong in (None, [], [{}], -1, "x", {"params": None}, {"x": {"y": 1}}):
      if isinstance(wrong, dict) and name in fields[5:10]:
        continue
      found[f"{name}={wrong}"] = lambda v, n=name, w=wrong: {**v, n: w}
  for shape in (None, "x", [-1], [2.0], [2**70], [1] * 99, [[1]]):
    found[f"shape {str(shape)[:20]}"] = lambda v, s=shape: _with_shape(v, s)
  for extra in (3, {"file": "../x", "tensors": {}}, {"file": "x"}):
    about = {"format": "timm", "extra": extra}
    found[f"extra {extra}"] = lambda v, a=about: {**v, "import": a}
  return found


def _with_shape(value: Any, shape: Any) -> Any:
  entry = next(iter(value["items"]["params"].values()))
  entry["shape"] = shape
  return value


@pytest.mark.parametrize("name", manifests())
def test_manifests_of_another_form(here, capsys, name):
  rewrite(here, manifests()[name])
  line = mistake(capsys, "inspect", "--checkpoint", "run")
  assert "manifest.json" in line or "format" in line


def test_a_manifest_of_samples_does_not_follow_links_out(tmp_path):
  inside = tmp_path / "set"
  inside.mkdir()
  (tmp_path / "secret.png").write_bytes(tiny_data.png(3))
  (inside / "a.png").symlink_to("../secret.png")
  (inside / "b.png").write_bytes(tiny_data.png(3))
  (inside / "c.png").symlink_to("b.png")
  rows = [{"id": x, "image": f"{x}.png"} for x in "abc"]
  path = inside / "set.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))

  def source(**options: str) -> ManifestSource:
    config = SourceConfig(kind="manifest", path=str(path), split="", **options)
    return ManifestSource("x", config, Storage())

  with pytest.raises(DecodeError, match="leaves the folder"):
    source().record(0).media["image"]()
  assert source().record(1).media["image"]() == tiny_data.png(3)
  assert source().record(2).media["image"]() == tiny_data.png(3)
  assert source(root="..").record(0).media["image"]() == tiny_data.png(3)


# -------------------------------------------------------------- printed names
def test_control_characters_are_written_out():
  assert escaped("a\nb\x1b[0m\u202e\x9b\udc80") == (
    "a\\nb\\x1b[0m\\u202e\\x9b\\udc80"
  )
  joined = "\u0645\u06cc\u200c\u062e \u65e5\u672c \U0001f9d1\u200d\U0001f680"
  assert escaped(joined) == joined
  value = {"a\x9b\u202e": ["日本", "\n", "\udc80"]}
  text = escaped_json(json.dumps(value, indent=1, ensure_ascii=False))
  assert json.loads(text) == value
  assert all(x.isprintable() for x in text.split("\n"))
  assert shown("x" * 10**7) == "'" + "x" * 76 + "..."
  assert shown(10**5000) == "an integer of 16610 bits"


def test_names_of_files_are_printed_escaped(here, capsys):
  name = RED + os.fsdecode(b"\xff.png")
  pathlib.Path(name).write_bytes(b"no picture")
  argv = ("score", "--checkpoint", "run", "--check", "off", "--text", "a")
  assert "\\x1b[31mred\\u202e\\x9b.png\\udcff.png" in mistake(
    capsys, *argv, name
  )
  pathlib.Path(name).write_bytes(tiny_data.png(3))
  for options in ((), ("--json",)):
    assert main([*argv, *options, name, "a.png"]) == 0
    text = capsys.readouterr().out
    assert "red" in text
    assert all(line.isprintable() for line in text.split("\n"))
  assert "\\x1b" in mistake(capsys, *argv, "a.png", f"--{RED}")
  assert "\\x1b" in mistake(capsys, RED)


def test_commands_print_through_the_common_functions():
  for path in CLI.glob("*.py"):
    if path.name in ("common.py", "main.py"):
      continue
    calls = [n for n in ast.walk(ast.parse(path.read_text()))
             if isinstance(n, ast.Call)]  # fmt: skip
    names = {n.func.id for n in calls if isinstance(n.func, ast.Name)}
    assert "print" not in names, path


def test_help_says_that_a_config_is_run(capsys):
  for command in ("pretrain", "plan", "inspect"):
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "is run as a program" in text


# --------------------------------------------------------------- tensor files
def safetensors(entry: Any, body: bytes = b"") -> bytes:
  text = json.dumps({"a": entry}).encode()
  return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
  "entry",
  [
    {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]},
    {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]},
    {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**70]},
    3, None, [], "x",
  ],
)  # fmt: skip
def test_safetensors_of_lying_headers(here, capsys, entry):
  pathlib.Path("x.safetensors").write_bytes(safetensors(entry, b"0000"))
  argv = ("import", "--from", "timm", "x.safetensors", "--out", "out")
  assert "'a'" in mistake(capsys, *argv)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  "kind", ["meta", "sparse", "wide", "quantized", "nested", "object", "axes"]
)
def test_torch_files_without_numbers(here, capsys, kind):
  torch = pytest.importorskip("torch")
  value = {
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "wide": lambda: torch.zeros(1).expand(10**12),
    "quantized": lambda: torch.quantize_per_tensor(
      torch.ones(3), 0.1, 0, torch.quint8
    ),
    "nested": lambda: torch.nested.nested_tensor(
      [torch.ones(2), torch.ones(3)]
    ),
    "object": lambda: {1: 2},
    "axes": lambda: torch.zeros([1] * 60),
  }[kind]()
  torch.save({"a": value}, "x.pt")
  argv = ("import", "--from", "timm", "x.pt", "--out", "out")
  assert "x.pt: 'a' is " in mistake(capsys, *argv)


# -------------------------------------------------------------------- configs
@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("def get_config():\n  return 1 / 0\n", "line 2: ZeroDivisionError"),
    ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    ("raise MemoryError\n", "line 1: MemoryError"),
    ("def f(): f()\nf()\n", "RecursionError"),
    ("get_config = 3\n", "has no function"),
    ("def get_config(a, b): pass\n", "TypeError"),
    ("def get_config(): return object()\n", "must return a ConfigDict"),
    ("x = (\n", "line 1"),
    ("assert 0, 'a\\x1b[31m\\nb'\n", "AssertionError: a\\x1b[31m b"),
    ("import ml_collections as m\n"
     "def get_config(): return m.ConfigDict({'x': print})\n", "'x'"),
  ],
)  # fmt: skip
def test_configs_that_raise(here, capsys, text, reason):
  pathlib.Path("c.py").write_text(text)
  assert reason in mistake(capsys, "inspect", "--config", "c.py")


def test_configs_that_are_no_text(here, capsys):
  for data in (b"\x00\x01", b"\xff\xfe", b"\x80abc", bytes(1000)):
    pathlib.Path("c.py").write_bytes(data)
    assert "c.py" in mistake(capsys, "inspect", "--config", "c.py")


# ------------------------------------------------- what is not installed here
@pytest.mark.parametrize(
  ("argv", "package"),
  [
    (("score", "--checkpoint", "gs://b/x", "--text", "a", "a.png"), "gcsfs"),
    (("pretrain", "--config", "demo", "--workdir", "gs://b/x"), "gcsfs"),
    (("inspect", "--checkpoint", "s3://b/x"), "s3fs"),
    (("pretrain", "--config", "demo", "--config.train.wandb=True"), "wandb"),
  ],
)
def test_missing_extras_are_named_at_once(
  here, capsys, monkeypatch, argv, package
):
  for name in ("gcsfs", "s3fs", "wandb"):
    monkeypatch.setitem(sys.modules, name, None)
  monkeypatch.setattr("mico_jax.run.pretrain.compile_steps", None)
  line = mistake(capsys, *argv)
  assert package in line
  assert extras.install(extras.EXTRAS[package]) in line


@pytest.mark.parametrize(
  "argv",
  [
    ("score", "--checkpoint", "foo://b/x", "--text", "a", "a.png"),
    ("pretrain", "--config", "demo", "--workdir", "https://host/x"),
    ("inspect", "--checkpoint", "foo://b/x"),
  ],
)
def test_unknown_stores(here, capsys, argv):
  assert "known: gs://, s3://" in mistake(capsys, *argv)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(here, platform):
  """In a process of its own, as JAX chooses its platform once."""
  code = (
    "import sys\nfrom mico_jax.cli.main import main\n"
    "argv = ['score', '--checkpoint', 'run', '--text', 'a', 'a.png']\n"
    "print(main(argv), main(['doctor']), file=sys.stderr)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False,
    env={**os.environ, "JAX_PLATFORMS": platform},
  )  # fmt: skip
  *_, first, second, statuses = done.stderr.splitlines()
  assert statuses == "2 2", done.stderr
  for line in (first, second):
    assert line.startswith(f"mico-jax: error: JAX_PLATFORMS={platform}: JAX")
  assert "Traceback" not in done.stderr
  assert "versions" in done.stdout  # the doctor says what it can


# ------------------------------------------------------------------------ plan
class Refused:
  """A traced program, lowered in turn, that the compiler finds too large."""

  def __init__(self, message: str):
    self.message = message

  def lower(self, **_: Any) -> Refused:
    return self

  def as_text(self) -> str:
    return "module"

  def compile(self, **_: Any) -> None:
    raise JaxRuntimeError(self.message)


@pytest.mark.parametrize(
  ("message", "sizes"),
  [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 33.35G "
     "of 15.75G hbm. Exceeded hbm capacity by 17.60G.", (33.35, 15.75)),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
     "for HLO temporaries (38.47G) exceeds available HBM (31.24G).",
     (38.47, 31.24)),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
     "for HLO temporaries (2.00T) exceeds available HBM (31.24G).",
     (2048.0, 31.24)),
    ("Compilation failure: Aborting compilation early because it's unlikely to "
     "have enough memory. Requires 3.47E, has 14.49G available.",
     (3.47 * 2**30, 14.49)),
  ],
)  # fmt: skip
def test_every_wording_of_too_large(tmp_path, monkeypatch, message, sizes):
  found = compiled.out_of_memory(message)
  assert found is not None
  assert [x / 2**30 for x in found] == pytest.approx(sizes)
  # The plan then says that it does not fit.
  monkeypatch.setenv(compiled.CACHE, "off")
  monkeypatch.setattr(compiled.aot, "prepare", lambda: tmp_path)
  where = topology.parse("v5e:4x4")
  facts = compiled.compile_facts(Refused(message), where, {"data": 16})
  assert not facts.fits
  assert (facts.needed, facts.limit) == found


def test_other_errors_of_the_compiler_are_none_of_memory():
  assert compiled.out_of_memory("INTERNAL: Mosaic failed") is None
