"""Imports point only backwards along the flow of data (see ROOMS)."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "mico_jax"

# A room may import its own and those on lines above; rooms of one line may not
# import each other, except where ALSO says so.
ROOMS: tuple[tuple[str, ...], ...] = (
  ("printing",),
  ("types", "axes", "config", "failures", "json_text", "memory", "rng"),
  ("files",),
  ("modalities",),
  ("world",),
  ("data",),
  ("kernels",),
  ("layers",),
  ("models",),
  ("finetuning",),
  ("objectives",),
  ("parallel",),
  ("train",),
  ("checkpoint",),
  ("inputs",),
  ("verification",),
  ("evaluation", "interop", "scores"),
  ("aot",),
  ("run", "inference", "benchmarks"),
  ("plan",),
  ("testing", "docs"),
  ("cli", "__main__"),
)
ALSO = {
  "evaluation": {"interop"},
  "run": {"inference"},
  "benchmarks": {"run", "inference"},
  "__main__": {"cli"},
}
# Narrower than the flow. World is NumPy only, objectives get model outputs and
# never a module class, a checkpoint is of any pytree.
ONLY = {
  "world": set(),
  "data": {
    "json_text",
    "types",
    "axes",
    "config",
    "failures",
    "files",
    "modalities",
    "printing",
    "world",
  },
  "kernels": {"types"},
  "layers": {"types", "axes", "kernels"},
  "objectives": {"types", "axes", "config", "modalities", "kernels", "rng"},
  "parallel": {"types", "axes", "config", "failures"},
  "checkpoint": {
    *("types", "axes", "config", "failures", "files", "memory"),
    "parallel",
  },
  "aot": {"kernels"},
}
# What runs on a device without the training stack.
LEAN = ("kernels", "layers", "models")
NOT_IN_LEAN = {"grain", "clu", "ml_collections"}
NOT_IN_HOST = {"jax", "jaxlib", "flax", "optax", "orbax"}
NEVER = {"tensorflow", "keras"}
TORCH_ROOMS = {"interop", "benchmarks"}

LEVEL = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
  unknown = {room_of(p) for p in FILES} - set(LEVEL) - {"configs"}
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
  room = room_of(path)
  if room not in LEVEL:
    pytest.skip(f"{room} is no code")
  problems = []
  for line, name in modules(ast.parse(path.read_text())):
    top, _, rest = name.partition(".")
    target = rest.split(".")[0]
    if top == "mico_jax":
      if target in LEVEL and target not in allowed(room):
        problems.append(f"line {line}: {room} may not import {name}")
    elif top in NEVER:
      problems.append(f"line {line}: {name} is never imported")
    elif top in {"torch", "torchvision"} and room not in TORCH_ROOMS:
      problems.append(f"line {line}: {name} only in {sorted(TORCH_ROOMS)}")
    elif room in LEAN and top in NOT_IN_LEAN:
      problems.append(f"line {line}: {room} must do without {name}")
    elif room in {"world", "modalities", "data"} and top in NOT_IN_HOST:
      problems.append(f"line {line}: {room} works on the host, not with {name}")
  assert not problems, "\n".join(problems)


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
  names = {
    p: ".".join(
      p.relative_to(PACKAGE.parent).with_suffix("").parts
    ).removesuffix(".__init__")
    for p in FILES
    if p.name != "__main__.py"
  }
  optional = [n for p, n in names.items() if room_of(p) in TORCH_ROOMS]
  run_fresh(f"""{BLOCKED}
import importlib
for name in {sorted(names.values())!r}:
  try:
    importlib.import_module(name)
  except ImportError as error:
    torch = (error.name or '').startswith('torch')
    if not (torch and name in {optional!r}):
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
