"""Imports point only backwards along the flow of data (see ROOMS)."""

from __future__ import annotations

import ast
import graphlib
import keyword
import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "mico_jax"

# A room may import its own and those on lines above; rooms of one line may not
# import each other, except where ALSO says so. "a.b" is a folder within a room,
# and "a" then what lies beside it.
ROOMS: tuple[tuple[str, ...], ...] = (
  ("extras", "printing"),
  ("aliases", "axes", "config", "failures", "json_text", "memory", "rng"),
  ("pretrained",),
  ("files",),
  ("modalities",),
  ("world",),
  ("data",),
  ("kernels",),
  ("layers",),
  ("models",),
  ("objectives",),
  ("parallel",),
  ("train",),
  ("checkpoint",),
  ("inference",),
  ("evaluation", "harnesses", "interop.files"),
  ("interop.names",),
  ("interop.importing",),
  ("interop.exporting",),
  ("interop",),
  ("aot",),
  ("run.monitor",),
  ("run.cluster",),
  ("run",),
  ("run.commands",),
  ("pretrained.make",),
  ("plan",),
  ("app",),
  ("testing", "docs"),
  ("benchmarks",),
  ("testing.golden", "testing.endurance"),
  ("cli", "__main__"),
)
ALSO = {"__main__": {"cli"}}
# Narrower than the flow. World is NumPy only, objectives get model outputs and
# never a module class, a checkpoint is of any pytree.
ONLY = {
  "world": set(),
  "data": {
    "json_text",
    "aliases",
    "axes",
    "config",
    "extras",
    "failures",
    "files",
    "modalities",
    "printing",
    "world",
  },
  "kernels": {"aliases"},
  "layers": {"aliases", "axes", "kernels"},
  "objectives": {"aliases", "axes", "config", "modalities", "kernels", "rng"},
  "parallel": {"aliases", "axes", "config", "failures", "printing"},
  "checkpoint": {
    *("aliases", "axes", "config", "failures", "files", "memory"),
    *("extras", "parallel", "pretrained", "printing"),
  },
  "aot": {"extras", "kernels"},
}
# What runs on a device without the training stack.
LEAN = ("kernels", "layers", "models")
NOT_IN_LEAN = {"grain", "clu", "ml_collections"}
NOT_IN_HOST = {"jax", "jaxlib", "flax", "optax", "orbax"}
NEVER = {"tensorflow", "keras"}
# What is compared with them imports them where it runs.
PEERS = {"mico_jax.benchmarks.data_peers"}
TORCH_ROOMS = {
  *("interop", "interop.files", "interop.exporting"),
  *("benchmarks", "harnesses"),
}
# Imported in their room only.
HARNESSES = ("mteb", "clip_benchmark", "lmms_eval")

LEVEL = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}


def room_of(module: str) -> str:
  """The room of "mico_jax.a.b.c": "a.b" where that is one, else "a"."""
  parts = module.split(".")[1:]
  folder = ".".join(parts[:2])
  return folder if folder in LEVEL else parts[0]


def module_of(path: pathlib.Path) -> str:
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


def modules(tree: ast.AST) -> list[tuple[int, str]]:
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      found.append((node.lineno, node.module))
      found += [
        (node.lineno, f"{node.module}.{alias.name}") for alias in node.names
      ]
  return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE) + [
  p for p in sorted(PACKAGE.glob("*.py")) if p.name != "__init__.py"
]


def test_every_room_has_its_place():
  unknown = {room_of(module_of(p)) for p in FILES} - set(LEVEL) - {"configs"}
  assert not unknown, f"no place in ROOMS for {sorted(unknown)}"


def allowed(room: str) -> set[str]:
  if room in ONLY:
    return ONLY[room] | {room}
  above = {r for r, level in LEVEL.items() if level < LEVEL[room]}
  return above | {room} | ALSO.get(room, set())


@pytest.mark.parametrize(
  "path", FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_backwards(path):
  room = room_of(module_of(path))
  if room not in LEVEL:
    pytest.skip(f"{room} is no code")
  problems = []
  for line, name in modules(ast.parse(path.read_text())):
    top = name.partition(".")[0]
    target = room_of(name) if name.startswith("mico_jax.") else ""
    if top == "mico_jax":
      if target in LEVEL and target not in allowed(room):
        problems.append(f"line {line}: {room} may not import {name}")
    elif top in NEVER and module_of(path) not in PEERS:
      problems.append(f"line {line}: {name} is never imported")
    elif top in {"torch", "torchvision"} and room not in TORCH_ROOMS:
      problems.append(f"line {line}: {name} only in {sorted(TORCH_ROOMS)}")
    elif top in HARNESSES and room != "harnesses":
      problems.append(f"line {line}: {name} only in harnesses")
    elif room in LEAN and top in NOT_IN_LEAN:
      problems.append(f"line {line}: {room} must do without {name}")
    elif room in {"world", "modalities", "data"} and top in NOT_IN_HOST:
      problems.append(f"line {line}: {room} works on the host, not with {name}")
  assert not problems, "\n".join(problems)


def test_no_modules_import_each_other_in_a_circle():
  known = {module_of(p): p for p in FILES}
  graph = {}
  for module, path in known.items():
    names = {name for _, name in modules(ast.parse(path.read_text()))}
    # "from a.b import c" also lists a.b, which is meant where c is no module.
    inside = {n.rpartition(".")[0] for n in names if n in known}
    graph[module] = (names - inside) & (set(known) - {module})
  try:
    tuple(graphlib.TopologicalSorter(graph).static_order())
  except graphlib.CycleError as error:
    pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


# Packages that a reader of `import x` or `x.y(...)` would take a module for.
LIBRARIES = {
  *("clu", "flax", "grain", "jax", "ml_collections", "numpy", "open_clip"),
  *("optax", "orbax", "safetensors", "sentencepiece", "tensorflow"),
  *("tensorflow_datasets", "timm", "torch", "transformers"),
}


def test_no_module_is_called_like_another_one():
  taken = LIBRARIES | sys.stdlib_module_names | set(keyword.kwlist)
  named = {module_of(p) for p in FILES if p.name != "__main__.py"}
  wrong = sorted(n for n in named if n.rpartition(".")[2] in taken)
  assert not wrong, f"called like a library's module: {wrong}"


def run_fresh(code: str, **environment: str) -> None:
  result = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert result.returncode == 0, result.stderr


BLOCKED = (
  "import sys\n"
  "for name in ('tensorflow', 'torch', 'torchvision'):\n"
  "  sys.modules[name] = None\n"
)


def test_import_without_tensorflow_and_torch():
  run_fresh(f"{BLOCKED}import mico_jax\nmico_jax.__version__")


def test_import_is_light():
  run_fresh(
    "import sys, mico_jax\n"
    "heavy = {'jax', 'flax', 'matplotlib', 'tensorflow_datasets', 'grain'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )


def test_every_module_imports_without_tensorflow_and_torch():
  names = sorted(module_of(p) for p in FILES if p.name != "__main__.py")
  optional = [name for name in names if room_of(name) in TORCH_ROOMS]
  run_fresh(f"""{BLOCKED}
import importlib
for name in {names!r}:
  try:
    importlib.import_module(name)
  except ImportError as error:
    missing = (error.name or '').partition('.')[0]
    extra = missing in {("torch", *HARNESSES)!r}
    if not (extra and name in {optional!r}):
      raise
""")


def test_a_batch_wakes_no_device():
  run_fresh(
    f"""{BLOCKED}
import tempfile
import mico_jax.config
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.tokenizer import make_tokenizer

config = mico_jax.config.load("demo", ["data.prefetch=1"])
tokenizer = make_tokenizer(config.data.tokenizer)
with tempfile.TemporaryDirectory() as workdir:
  pipeline = Pipeline(config, tokenizer, workdir=workdir, end_step=1)
  step, task, batch = next(iter(pipeline))
assert step == 0 and len(batch["row"]) == config.tasks[task].batch_size
""",
    JAX_PLATFORMS="no_such_platform",
  )
