"""Reading PyTorch files of weights without running code that they hold.

`torch.load(weights_only=True, mmap=True)` refuses a pickle that names anything
but tensors and plain containers, and leaves the numbers on disk. Pages that
were read are released at once, so that no more than one tensor is in memory.
Needs the extra `torch`.
"""

from __future__ import annotations

import ctypes
import mmap
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mico_jax import extras
from mico_jax.interop.files import torchscript_file
from mico_jax.interop.files.dtypes import MAX_AXES
from mico_jax.interop.files.tensors import Tensor, Tensors, WeightsError
from mico_jax.printing import shown

# Keys under which training code keeps the weights beside other things.
NESTED = ("state_dict", "model", "module", "model_state_dict")
# In older versions `weights_only=True` can run code (CVE-2025-32434).
OLDEST = (2, 6)
_DONTNEED = 4  # MADV_DONTNEED of Linux


def open_tensors(path: str | pathlib.Path) -> Tensors:
  """The tensors of a file written by `torch.save`.

  Raises:
    WeightsError: if torch is missing or too old to be safe, or the file is cut
      short, holds code or anything but tensors.
  """
  path = pathlib.Path(path)
  members = _members(path)
  if any(name.split("/")[1:2] == ["code"] for name in members):
    return torchscript_file.open_tensors(path)
  mapped = bool(members)
  try:
    import torch
  except ImportError as error:
    raise WeightsError(
      f"{path}: reading PyTorch files needs torch: "
      f"{extras.install('torch')} (.safetensors files need no torch)."
    ) from error
  _check_version(path, torch.__version__)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      value = torch.load(
        str(path), map_location="cpu", weights_only=True, mmap=mapped
      )
  except Exception as error:  # torch raises many kinds for broken files
    raise WeightsError(_reason(path, error)) from error
  # Only pages of the file may be released: releasing others would erase them.
  places = _mappings(path) if mapped else ()
  return {
    name: Tensor(
      name,
      tuple(tensor.shape),
      _dtype(path, name, tensor),
      lambda tensor=tensor: _to_numpy(tensor, places),
    )
    for name, tensor in _state(path, value).items()
  }


def _check_version(path: pathlib.Path, version: str) -> None:
  """Refuses a torch that may run code of a file."""
  installed = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
  if installed < OLDEST:
    wanted = ".".join(map(str, OLDEST))
    raise WeightsError(
      f"{path}: torch {version} may run code that a file of weights holds "
      f"(CVE-2025-32434); update it to {wanted} or newer, or give a "
      ".safetensors file."
    )


def _members(path: pathlib.Path) -> list[str]:
  """Members of a zip archive, as torch writes since 1.6; [] for older files.

  Raises:
    WeightsError: for an empty or broken archive, or one whose members leave it.
  """
  with open(path, "rb") as file:
    start = file.read(4)
  if not start:
    raise WeightsError(f"{path}: the file is empty (0 bytes).")
  if not start.startswith(b"PK"):
    return []
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
  except (zipfile.BadZipFile, OSError, ValueError) as error:
    raise WeightsError(
      f"{path}: a broken PyTorch file, cut short? ({error})"
    ) from error
  size = path.stat().st_size
  for member in members:
    parts = member.filename.replace("\\", "/").split("/")
    if ".." in parts or member.filename.startswith(("/", "\\")):
      raise WeightsError(
        f"{path}: its member {member.filename!r} leaves the archive."
      )
    if member.file_size > size:
      raise WeightsError(
        f"{path}: its member {member.filename!r} declares "
        f"{member.file_size} bytes, the whole file has {size}."
      )
  return [member.filename for member in members]


def _reason(path: pathlib.Path, error: Exception) -> str:
  text = " ".join(str(error).split())
  match = re.search(r"(?:GLOBAL|global|class)\s+`?([\w.]+)`?", text)
  if "weights_only" in text.lower() or "Unsupported" in text:
    what = f" ({match.group(1)})" if match else ""
    return (
      f"{path}: its pickle holds more than tensors{what}, which could be code "
      "and is not run; write the plain state dict with torch.save and import "
      "that."
    )
  return f"{path}: not a readable PyTorch file, cut short? ({text[:160]})"


def _state(path: pathlib.Path, value: Any) -> dict[str, Any]:
  """The name -> tensor mapping, at the top or below the usual keys."""
  import torch

  for _ in range(3):
    chosen = next(
      (
        key
        for key in NESTED
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping)
      ),
      None,
    )
    if chosen is None:
      break
    others = [
      str(key)
      for key, other in value.items()
      if key != chosen and _holds_weights(other)
    ]
    if others:
      warnings.warn(
        f"{path}: the weights under {chosen!r} are taken, those under "
        f"{', '.join(others)} are not; to import others, write them to a file "
        "of their own.",
        UserWarning,
        stacklevel=2,
      )
    value = value[chosen]
  if not isinstance(value, Mapping) or not value:
    raise WeightsError(
      f"{path}: holds {type(value).__name__}, expected a state dict (names of "
      "tensors)."
    )
  for name, tensor in value.items():
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
      raise WeightsError(
        f"{path}: {shown(name)} is {type(tensor).__name__}, expected a tensor; "
        f"known places of a state dict: {', '.join(NESTED)}."
      )
    _check_dense(path, name, tensor)
  return dict(value)


def _check_dense(path: pathlib.Path, name: str, tensor: Any) -> None:
  """Refuses tensors that are not stored element by element."""
  import torch

  kind = ""
  if tensor.device.type != "cpu":
    kind = f"on the device {tensor.device.type!r}, without numbers"
  elif tensor.is_nested:
    kind = "nested"
  elif tensor.layout != torch.strided:
    kind = f"stored as {tensor.layout}"
  elif tensor.is_quantized:
    kind = "quantized"
  elif tensor.ndim > MAX_AXES:
    kind = f"of {tensor.ndim} axes"
  elif tensor.numel() > tensor.untyped_storage().nbytes():
    kind = f"{list(tensor.shape)} of far fewer stored numbers"
  if kind:
    raise WeightsError(
      f"{path}: {shown(name)} is {kind}; write the state dict of a model on "
      "the CPU, each tensor dense."
    )


def _holds_weights(value: Any, levels: int = 3) -> bool:
  """Whether a mapping, or one below its usual keys, holds tensors by name."""
  import torch

  if not levels or not isinstance(value, Mapping):
    return False
  inner = [value[key] for key in NESTED if key in value]
  return any(_holds_weights(one, levels - 1) for one in inner) or any(
    isinstance(name, str) and isinstance(one, torch.Tensor)
    for name, one in value.items()
  )


def _dtype(path: pathlib.Path, name: str, tensor: Any) -> np.dtype:
  import torch

  if tensor.dtype == torch.bfloat16:
    return np.dtype(ml_dtypes.bfloat16)
  try:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype
  except TypeError as error:
    raise WeightsError(
      f"{path}: {name!r} has dtype {tensor.dtype}, which NumPy lacks."
    ) from error


def _to_numpy(tensor: Any, mapped: tuple[tuple[int, int], ...]) -> np.ndarray:
  """A copy of a tensor; releases the pages of its file."""
  import torch

  tensor = tensor.detach().resolve_conj().resolve_neg()
  bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
  array = np.array(bits.contiguous().numpy(), order="C")
  start = tensor.data_ptr()
  end = start + tensor.numel() * tensor.element_size()
  if any(low <= start and end <= high for low, high in mapped):
    _release(start, end)
  if tensor.dtype == torch.bfloat16:
    return array.view(ml_dtypes.bfloat16)
  return array


def _mappings(path: pathlib.Path) -> tuple[tuple[int, int], ...]:
  """Address ranges of this process that are the pages of a file (Linux)."""
  maps = pathlib.Path("/proc/self/maps")
  if not maps.is_file():
    return ()
  name = str(path.resolve())
  ranges = [
    line.split(" ", 1)[0].split("-")
    for line in maps.read_text(errors="replace").splitlines()
    if line.endswith(" " + name)
  ]
  return tuple((int(low, 16), int(high, 16)) for low, high in ranges)


def _release(start: int, end: int) -> None:
  """Releases mapped pages; they are read again when needed."""
  first = start // mmap.PAGESIZE * mmap.PAGESIZE
  libc = ctypes.CDLL(None)
  libc.madvise(
    ctypes.c_void_p(first),
    ctypes.c_size_t(end - first),
    ctypes.c_int(_DONTNEED),
  )
