"""Every field says what it may hold, and nothing else comes in."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import pytest

from mico_jax import config as c
from mico_jax.cli.main import main
from mico_jax.config import fields
from mico_jax.run.checks import check_values
from mico_jax.testing import tiny_checkpoint

CLASSES = [
  value
  for name, value in vars(c).items()
  if name.endswith("Config") and isinstance(value, type)
]
FIELDS = [(cls, field) for cls in CLASSES for field in dataclasses.fields(cls)]
HUGE = "1" + "0" * 400


def split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
  if typing.get_origin(hint) is Annotated:
    base, *rules = typing.get_args(hint)
    return base, tuple(rules)
  return hint, ()


def undeclared(hint: Any, path: str) -> Iterator[str]:
  """The parts of a field's type that any value would satisfy."""
  base, rules = split(hint)
  origin, args = typing.get_origin(base), typing.get_args(base)
  if base is bool or dataclasses.is_dataclass(base):
    return
  kind = fields.Items if origin in (tuple, Mapping) else object
  if not [r for r in rules if isinstance(r, kind)]:
    yield path
  for rule in rules:
    if isinstance(rule, fields.Range):
      whole = isinstance(rule.low, int) and isinstance(rule.high, int)
      if whole != (base is int) or not rule.low < rule.high:
        yield f"{path}: {rule}"
  for i, part in enumerate(a for a in args if a is not ...):
    yield from undeclared(part, f"{path}[{i}]")


@dataclasses.dataclass(frozen=True)
class EntryOptions:
  near: Annotated[float, fields.Range(0.0, 1.0)] = 0.5


def test_options_of_an_entry_are_built_and_errors_begin_with_their_field():
  where = "data.sources.train.options"
  options = c.from_dict({"near": 0.25}, EntryOptions, where=where)
  assert options == EntryOptions(0.25)
  assert c.from_dict({}, EntryOptions, where=where) == EntryOptions()
  for values, message in (
    ({"near": 2.0}, rf"^{where}: near=2\.0: expected a number of at"),
    ({"neer": 0.2}, rf"^{where}: unknown config key 'neer'.*'near'"),
  ):
    with pytest.raises(c.ConfigError, match=message):
      c.from_dict(values, EntryOptions, where=where)


@pytest.mark.parametrize(
  ("cls", "field"), FIELDS, ids=[f"{k.__name__}.{f.name}" for k, f in FIELDS]
)
def test_a_field_is_declared(cls, field):
  hint = typing.get_type_hints(cls, include_extras=True)[field.name]
  assert not list(undeclared(hint, field.name))


def test_defaults_are_allowed():
  for cls in CLASSES:
    c.check(cls())
  c.check(c.Config())


def test_choices_are_those_of_the_code():
  from mico_jax.kernels.contrastive.api import FORMS
  from mico_jax.layers.attention import BIASES
  from mico_jax.modalities.depth import UNITS
  from mico_jax.models.checks import NAMES, NORMS
  from mico_jax.objectives.contrastive import DTYPES
  from mico_jax.train.optimizer import STATE_DTYPES
  from mico_jax.train.state import OFFLOADABLE
  from mico_jax.world.scene import VERSIONS

  def choice(cls: type, name: str) -> set[str]:
    base, rules = split(typing.get_type_hints(cls, include_extras=True)[name])
    if typing.get_origin(base) is tuple:
      _, rules = split(typing.get_args(base)[0])
    return set(rules[0].names)

  for name in ("matmul_precision", "normals_as", "dtype", "masked_rows"):
    assert choice(c.ModelConfig, name) == set(NAMES[name])
  assert choice(c.VisionConfig, "norm") == set(NORMS)
  assert choice(c.VisionConfig, "qkv_bias") == set(BIASES)
  assert choice(c.SourceConfig, "depth_unit") == {"", *UNITS}
  assert choice(c.SourceConfig, "version") == set(VERSIONS)
  assert choice(c.ContrastiveConfig, "form") == set(FORMS)
  assert choice(c.ContrastiveConfig, "gather_dtype") == set(DTYPES)
  assert choice(c.OptimizerConfig, "state_dtype") == set(STATE_DTYPES)
  assert choice(c.ParallelConfig, "offload") == set(OFFLOADABLE)


def test_tables_of_keys_exist():
  for cls, field in FIELDS:
    hint = typing.get_type_hints(cls, include_extras=True)[field.name]
    for rule in split(hint)[1]:
      if isinstance(rule, fields.Key):
        module, _, name = rule.table.rpartition(".")
        table = getattr(importlib.import_module(module), name)
        assert field.default in (*table, *rule.also)


def absurd(hint: Any) -> Iterator[str]:
  """Texts of values that no field of this type may hold."""
  base, rules = split(hint)
  args = typing.get_args(base)
  if typing.get_origin(base) is not Mapping:
    yield from ("None", "{'a': {'b': 1}}") if base is not Any else ("{1: 2}",)
  if base is bool:
    yield from ("1", "'yes'", "maybe", "()")
  elif base in (int, float):
    low, high = rules[0].low, rules[0].high
    yield from ("True", "'3'", "three", "()", "nan", "1e999", HUGE, f"-{HUGE}")
    yield from (repr(low - 1), repr(high * 2 + 1))
    if base is int:
      yield from ("3.0", "1e3")
  elif base is str:
    yield from ("3", "True", "('a',)", "'a\\n\\x1b[31mb'", "'\\ud800'")
    yield f"'{'x' * (1 + getattr(rules[0], 'high', 4999))}'"
    if not rules[0].accepts("") or isinstance(rules[0], fields.Key):
      yield "''"
    if isinstance(rules[0], (fields.Choice, fields.Key)):
      yield "no_such_name"
    if isinstance(rules[0], fields.Regex):
      yield "'('"
  elif typing.get_origin(base) is tuple:
    yield from ("3", "text", "True", f"({'1,' * 5000})")
    for text in absurd(args[0]):
      if not (args[0] is Any or text.startswith("-1")):
        yield f"({literal(text)},)"
  elif typing.get_origin(base) is Mapping:
    yield from ("3", "text", "True", "('a',)", "{1: 1}", "{'': 1}")
    if not dataclasses.is_dataclass(args[1]):
      for text in absurd(args[1]):
        yield f"{{'a': {literal(text)}}}"


def literal(text: str) -> str:
  """A value inside of another: bare words are none there."""
  if text in ("nan", "three", "maybe", "text", "no_such_name"):
    return repr(text)
  return text


CONFIG = tiny_checkpoint.tiny_config()
ABSURD = [
  f"{path}={text}"
  for path, _, hint in c.leaves(CONFIG)
  for text in dict.fromkeys(absurd(hint))
]


def test_the_table_is_large():
  assert len(ABSURD) > 1500
  assert len({text.partition("=")[0] for text in ABSURD}) > 150


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
  """A config file, in a process where no device may be touched."""

  def touched(*_: Any, **__: Any) -> None:
    raise AssertionError("a device was touched")

  for name in ("devices", "local_devices", "device_count", "default_backend"):
    monkeypatch.setattr(jax, name, touched)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tiny.py").write_text(tiny_checkpoint.CONFIG_FILE)
  return "tiny.py"


def fault(text: str) -> str:
  """The message that an override gives; "": it is allowed."""
  try:
    check_values(c.override(CONFIG, [text]))
  except c.ConfigError as error:
    return str(error)
  return ""


def test_absurd_values_are_refused():
  """One printable line that begins with the field."""
  wrong = []
  for text in ABSURD:
    line, name = fault(text), text.partition("=")[0]
    if not line.startswith(name) or not line.isprintable() or len(line) > 600:
      wrong.append((text[:120], line[:300]))
  assert not wrong, f"{len(wrong)} of them: {wrong[:5]}"


COMMON = ("-1", "0", "1000000000000", "-1e30", "nan", "inf", "''", "'x'", "[]",
          "{}", "[[[]]]", "{'a': {'b': []}}", "None", "True")  # fmt: skip


def inside(value: Any, hint: Any) -> bool:
  """Whether a value is what a field declares, said here once more."""
  base, rules = split(hint)
  origin, args = typing.get_origin(base), typing.get_args(base)
  if origin is tuple:
    fits = isinstance(value, tuple) and all(inside(v, args[0]) for v in value)
  elif origin is Mapping:
    fits = isinstance(value, Mapping) and all(
      inside(k, args[0]) and inside(v, args[1]) for k, v in value.items()
    )
  elif dataclasses.is_dataclass(base):
    fits = isinstance(value, base)
  else:
    fits = base is Any or type(value) is base
  return fits and all(rule.accepts(value) for rule in rules)


def test_what_is_not_refused_is_inside_its_declaration():
  for path, _, _ in c.leaves(CONFIG):
    for value in COMMON:
      try:
        config = c.override(CONFIG, [f"{path}={value}"])
      except c.ConfigError:
        continue
      found = {name: (held, hint) for name, held, hint in c.leaves(config)}
      assert inside(*found[path]), f"{path}={value}"


def test_the_command_line_refuses_before_any_device(tiny, capsys):
  """By the whole way, for some fields; a value each."""
  chosen = {text.partition("=")[0]: text for text in ABSURD}
  for name, text in list(chosen.items())[::24]:
    assert main(["pretrain", "--config", tiny, f"--config.{text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mico-jax: error: {name}")


def test_values_of_python_are_checked():
  """A config put together in code has not come through a file."""
  nan = dataclasses.replace(CONFIG.optimizer, learning_rate=float("nan"))
  with pytest.raises(c.ConfigError, match=r"optimizer\.learning_rate=nan"):
    c.check(dataclasses.replace(CONFIG, optimizer=nan))


def test_a_checkpoint_of_absurd_values_is_refused(tmp_path):
  from mico_jax.checkpoint import restore
  from mico_jax.checkpoint.manifest import CheckpointError

  text = c.to_json(CONFIG).replace('"steps": 4', '"steps": -4')
  assert '"steps": -4' in text
  with pytest.raises(CheckpointError, match=r"steps=-4: expected an integer"):
    restore.parse_config(text.encode(), tmp_path)
