"""Reading weights of TorchScript archives without running code.

OpenAI publishes CLIP in this form: a zip of code, which is ignored, and a
pickle of objects whose attributes are tensors and further objects. The pickle
may name only what such archives need; any other name is refused, and the
objects have no behaviour. Torch is not needed.

Source: https://pytorch.org/docs/stable/notes/serialization.html,
https://github.com/openai/CLIP (form of the published files).
"""

from __future__ import annotations

import collections
import math
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mico_jax.interop.files.dtypes import MAX_AXES, STORAGES
from mico_jax.interop.files.tensors import Tensor, Tensors, WeightsError
from mico_jax.printing import shown

DTYPES = {f"{name}Storage": dtype for dtype, name in STORAGES.items()}
LISTS = ("build_intlist", "build_boollist", "build_doublelist")
LISTS += ("build_tensorlist",)
MAX_PICKLE = 100_000_000  # bytes; published ones have less than a million
# Size of the tree of modules; published ones have less than 10,000 and 10.
MAX_OBJECTS, MAX_DEPTH = 1_000_000, 200


class _Object:
  """An object of the archive, reduced to its state."""

  state: Any

  def __new__(cls, *args: Any) -> _Object:
    del args
    instance = super().__new__(cls)
    instance.state = None
    return instance

  def __setstate__(self, state: Any) -> None:
    self.state = state


class _Reader(pickle.Unpickler):
  """Builds nothing but `_Object`, tensors, lists and dicts."""

  def __init__(self, file: Any, path: pathlib.Path, root: str):
    super().__init__(file)
    self._path, self._root = path, root

  def find_class(self, module: str, name: str) -> Any:
    """The object that a name of the pickle refers to.

    Raises:
      WeightsError: for a name that weights do not need.
    """
    if module.split(".")[0] == "__torch__":
      return _Object
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return self._tensor
    if module == "torch" and name in DTYPES:
      return name  # a string, which no instruction of a pickle can change
    if module == "torch.jit._pickle" and name in LISTS:
      return list
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    raise WeightsError(
      f"{self._path}: its pickle names {module}.{name}, which could be code "
      "and is not run; expected objects and tensors alone."
    )

  def persistent_load(self, pid: Any) -> tuple[np.dtype, str, int]:
    """A storage: dtype, member of the archive, number of elements."""
    kind, storage, key, _, count = pid
    if kind != "storage" or storage not in DTYPES:
      raise WeightsError(f"{self._path}: {pid!r} is no storage.")
    return DTYPES[storage], f"{self._root}data/{key}", int(count)

  def _tensor(
    self,
    storage: tuple[np.dtype, str, int],
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    *rest: Any,
  ) -> Tensor:
    del rest
    dtype, member, count = storage
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(
      type(n) is not int or n < 0 for n in numbers
    ):
      raise WeightsError(
        f"{self._path}: a tensor of shape {list(shape)}, strides "
        f"{list(strides)}, offset {offset}; expected whole numbers."
      )
    last = offset + sum(
      (n - 1) * s for n, s in zip(shape, strides, strict=True)
    )
    if len(shape) > MAX_AXES or math.prod(shape) > max(count, 1):
      raise WeightsError(
        f"{self._path}: a tensor of shape {shown(list(shape))} has more "
        f"elements than {member!r}, which has {count}."
      )
    if math.prod(shape) and last >= count:
      raise WeightsError(
        f"{self._path}: a tensor of shape {list(shape)} reaches element {last} "
        f"of {member!r}, which has {count}."
      )

    def load() -> np.ndarray:
      if not math.prod(shape):
        return np.zeros(shape, dtype)
      data = _read(self._path, member)
      if len(data) != count * dtype.itemsize:
        raise WeightsError(
          f"{self._path}: {member!r} has {len(data)} bytes, expected {count} "
          f"numbers of {dtype}."
        )
      flat = np.frombuffer(data, dtype)[offset:]
      steps = [s * dtype.itemsize for s in strides]
      view = np.lib.stride_tricks.as_strided(flat, shape, steps)
      return np.array(view, order="C")

    return Tensor("", tuple(shape), dtype, load)


def _read(path: pathlib.Path, member: str) -> bytes:
  """The bytes of a member of an archive."""
  try:
    with zipfile.ZipFile(path) as archive:
      return archive.read(member)
  except (
    KeyError,  # no such member
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted, or packed in a way that zipfile lacks
  ) as error:
    text = " ".join(str(error).split())[:120]
    raise WeightsError(
      f"{path}: {member!r} is missing or damaged ({text}); take another copy."
    ) from error


def open_tensors(path: pathlib.Path) -> Tensors:
  """The tensors of a TorchScript archive by the names of its modules.

  Args:
    path: of an archive whose member names were checked.

  Raises:
    WeightsError: if it names anything but objects and tensors, holds no
      module, or one nested without end.
  """
  with zipfile.ZipFile(path) as archive:
    pickles = [
      i for i in archive.infolist() if i.filename.count("/") == 1
      and i.filename.endswith("/data.pkl")
    ]  # fmt: skip
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
      raise WeightsError(f"{path}: holds no data.pkl of a TorchScript module.")
    root = pickles[0].filename.removesuffix("data.pkl")
    try:
      with archive.open(pickles[0]) as file:
        module = _Reader(file, path, root).load()
    except WeightsError:
      raise
    except Exception as error:  # pickle raises many kinds for broken files
      text = " ".join(str(error).split())[:120]
      raise WeightsError(
        f"{path}: its data.pkl is broken, cut short? ({text})"
      ) from error
  tensors = {
    name: Tensor(name, one.shape, one.dtype, one.load)
    for name, one in _walk(path, module)
  }
  if not tensors:
    raise WeightsError(
      f"{path}: a TorchScript archive without a module that holds tensors."
    )
  return tensors


def _walk(path: pathlib.Path, module: Any) -> Iterator[tuple[str, Tensor]]:
  """Tensors below an object, with the names of a state dict.

  An object with two parents is listed below both, unless it contains itself.
  """
  # Still to visit: name, value, and the objects that contain it.
  waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", module, ())]
  visited = 0
  while waiting:
    prefix, value, above = waiting.pop()
    if isinstance(value, Tensor):
      yield prefix, value
    elif isinstance(value, _Object) and id(value) not in above:
      state = value.state if isinstance(value.state, dict) else {}
      visited += 1 + len(state)
      if visited > MAX_OBJECTS or len(above) > MAX_DEPTH:
        raise WeightsError(
          f"{path}: its modules are nested beyond any that hold weights (more "
          f"than {MAX_OBJECTS:,} attributes, or {MAX_DEPTH} levels)."
        )
      inside = (*above, id(value))
      waiting += [
        (f"{prefix}.{name}" if prefix else str(name), inner, inside)
        for name, inner in reversed(state.items())
      ]
