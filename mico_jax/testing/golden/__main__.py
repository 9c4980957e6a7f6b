"""Command line of the golden cases; see the package."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax

from mico_jax.testing import golden

OK, EXCEEDED, UNSUPPORTED = 0, 1, 2


def folders(root: pathlib.Path) -> list[golden.Folder]:
  """The case folders in `root`, or `root` itself if it is one."""
  candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
  return [
    golden.Folder(p)
    for p in candidates
    if any((p / name).is_file() for name in golden.CONFIGS)
  ]


def run(folder: golden.Folder) -> int:
  """Runs one case and prints its lines; returns its exit code."""
  label = folder.path.name
  name = golden.case_named(folder.case, golden.CASES)
  if not name:
    print(f"UNSUPPORTED {label}: needs a case {folder.case!r}")
    return UNSUPPORTED
  case = golden.CASES[name]
  print(f"{label} ({name})")
  code, seen = OK, set()
  try:
    with jax.default_matmul_precision("highest"):
      for check in case(folder):
        seen.add(check.name)
        if isinstance(check, golden.Missing):
          print(f"UNSUPPORTED {label} {check.name}: needs {check.feature}")
          code = code or UNSUPPORTED
          continue
        print(check.line(), flush=True)
        code = code if check.passed else EXCEEDED
  except golden.Unsupported as error:
    print(f"UNSUPPORTED {label}: needs {error}")
    return code or UNSUPPORTED
  except Exception as error:
    print(f"  FAIL {label}: {type(error).__name__}: {error}")
    return EXCEEDED
  if folder.has("outputs"):
    for name in folder.outputs:
      if name not in seen:
        print(f"UNSUPPORTED {label} {name}: needs a comparison of this output")
        code = code or UNSUPPORTED
  return code


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the cases of a folder; returns the exit code.

  0: all within limits; 1: a limit exceeded, a case that failed or none found;
  2: nothing exceeded, but some cases are unsupported.
  """
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.testing.golden", description=main.__doc__
  )
  parser.add_argument("folder", type=pathlib.Path, help="folder of cases")
  parser.add_argument("--cases", default="", help="names, with commas between")
  arguments = parser.parse_args(argv)
  if not arguments.folder.is_dir():
    print(f"no folder {str(arguments.folder)!r}", file=sys.stderr)
    return EXCEEDED
  wanted = [name for name in arguments.cases.split(",") if name]
  codes, known = [], set()
  for folder in folders(arguments.folder):
    case = golden.case_named(folder.case, golden.CASES)
    names = {folder.case, folder.path.name, case}
    if not wanted or names & set(wanted):
      known |= names
      codes.append(run(folder))
  absent = [name for name in wanted if name not in known]
  if absent or not codes:
    print(f"no case {', '.join(absent) or '(none at all)'} found")
    codes.append(EXCEEDED)
  code = EXCEEDED if EXCEEDED in codes else max(codes)
  ok, failed = codes.count(OK), codes.count(EXCEEDED)
  print(f"{ok} ok, {failed} failed, {codes.count(UNSUPPORTED)} unsupported")
  return code


if __name__ == "__main__":
  sys.exit(main())
