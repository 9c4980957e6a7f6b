"""Entry point of `mico-jax`: runs a subcommand and reports its errors.

Exit status: 0 on success only, 1 for broken samples that `data verify` lists, 2
for a user's mistake (one line on stderr), 130 after Ctrl-C, 75 and 76 when a
run should be started again (see `mico_jax.run.cluster.status`; 75 also for a
fault of storage that may pass, such as a full disk or a store that is away).
Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import mico_jax
from mico_jax import failures
from mico_jax.cli import ending
from mico_jax.cli.huge_pages import restart_with_huge_pages
from mico_jax.config import ConfigError
from mico_jax.extras import EXTRAS, install
from mico_jax.printing import escaped, known_names

# Name -> one line of help. Each has a module in this folder (`module_of`) with
# `DESCRIPTION`, `EXAMPLES`, `add_arguments` and `run`, imported when chosen;
# one whose help lists tables of the package has `details` as well.
COMMANDS: dict[str, str] = {
  "pretrain": "train a model from a config, or resume a run",
  "evaluate": "measure a checkpoint: retrieval, matching, captions, ...",
  "sweep": "train many configs, draw what they show, fit power laws",
  "report": "make one page of several evaluations",
  "samples": "write example pictures, clips, sounds and maps",
  "embed": "write the embeddings of many files",
  "index": "make or change an index of embeddings to search",
  "search": "find the items of an index by text or files",
  "serve": "serve a page to search, caption and ask in a browser",
  "score": "compare texts with files",
  "caption": "write a caption for each file",
  "import": "make a checkpoint of weights of other libraries",
  "export": "write a checkpoint for PyTorch and others",
  "trace": "list the samples of any past step",
  "plan": "say whether a config fits a TPU slice, and what it costs",
  "inspect": "show what a checkpoint or config holds",
  "data": "look at data, pack it, make a tokenizer",
  "bench": "measure kernels, on a device or by the TPU compiler",
  "doctor": "show versions, devices and optional packages",
  "completion": "print a script that completes commands in a shell",
}

# Commands whose names Python or a module of its library has taken.
_MODULES = {
  "import": "import_weights",
  "inspect": "describe",
  "trace": "sample_trace",
}

_EXAMPLES = """\
examples:
  mico-jax pretrain --config demo --workdir runs/demo
  mico-jax score --checkpoint runs/demo --text "a red cube" photo.jpg clip.mp4
  mico-jax embed --checkpoint runs/demo --out vectors.parquet *.jpg *.flac

`mico-jax COMMAND --help` explains each command. Results go to stdout, progress
to stderr."""


def module_of(command: str) -> str:
  """Dotted name of the module that implements a command."""
  return f"mico_jax.cli.{_MODULES.get(command, command)}"


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates "--config.a.b=value" and "--config.a.b value" from the others.

  Returns:
    The other arguments, and the texts "a.b=value".
  """
  rest, overrides = [], []
  left = list(argv)
  while left:
    arg = left.pop(0)
    if arg == "--":
      return [*rest, arg, *left], overrides
    if not arg.startswith("--config."):
      rest.append(arg)
      continue
    override = arg.removeprefix("--config.")
    # As in other programs, the value may stand behind a space.
    if "=" not in override and left and not left[0].startswith("--"):
      override += f"={left.pop(0)}"
    overrides.append(override)
  return rest, overrides


def make_parser(
  command: str | None, *, whole: bool = False
) -> argparse.ArgumentParser:
  """The parser; only the chosen command's module is imported.

  Args:
    command: that is chosen.
    whole: all commands have their arguments, for tools that read them.
  """
  parser = _Parser(
    prog="mico-jax",
    description="Omni-modal pretraining in JAX.",
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--version", action="version", version=f"mico-jax {mico_jax.__version__}"
  )
  commands = parser.add_subparsers(
    dest="command", metavar="COMMAND", required=True
  )
  for name, text in COMMANDS.items():
    if name != command and not whole:
      commands.add_parser(name, help=text, add_help=False)
      continue
    module = importlib.import_module(module_of(name))
    sub = commands.add_parser(
      name,
      help=text,
      description=module.DESCRIPTION,
      epilog=f"examples:\n{module.EXAMPLES}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(sub)
    sub.details = getattr(module, "details", None)
    _refuse_empty_names(sub)
    sub.set_defaults(run=module.run)
  return parser


# What stands for a name in the help of an argument.
_NAMES = ("CKPT", "DIR", "FILE", "NAME", "PATH", "PNG")


def _refuse_empty_names(parser: argparse.ArgumentParser) -> None:
  """Makes a parser refuse empty names of files, folders and configs.

  An unset shell variable becomes an empty argument; if `--init ""` counted as
  absent, a run would silently start from random weights.
  """
  actions: Any = parser._actions
  for action in actions:
    free = action.type is None and action.default is None
    if free and action.metavar in _NAMES:
      action.type = _name


def _name(text: str) -> str:
  if not text:
    raise argparse.ArgumentTypeError("is empty, expected a name")
  return text


class _Parser(argparse.ArgumentParser):
  """A parser that prints an error as one line.

  Attributes:
    details: more description, made when help is asked for, as the tables that
      it lists are slow to import.
  """

  details: Callable[[], str] | None = None

  def format_help(self) -> str:
    """The help with its details."""
    plain = self.description
    if self.details is not None:
      self.description = f"{plain}\n\n{self.details()}"
    try:
      return super().format_help()
    finally:
      self.description = plain

  def error(self, message: str) -> NoReturn:
    """Ends with status 2."""
    _say(f"error: {message} (see {self.prog} --help)")
    raise SystemExit(2)


def _say(text: str) -> None:
  """One line on stderr."""
  print(f"mico-jax: {escaped(text)}", file=sys.stderr)


def _missing_extra(error: BaseException | None) -> str:
  """The optional package whose absence an error is about; "": none."""
  while error is not None:
    if isinstance(error, ImportError):
      name = (error.name or "").partition(".")[0]
      words = re.findall(r"\w+", str(error))
      for known in EXTRAS:
        if name == known or (not name and known in words):
          return known
    error = error.__cause__
  return ""


def _user_errors() -> tuple[type[BaseException], ...]:
  """Types of errors that a user or storage causes, never a defect."""
  from mico_jax.checkpoint.manifest import CheckpointError
  from mico_jax.data.bad_samples import TooManyBadSamples
  from mico_jax.modalities import DecodeError
  from mico_jax.run.monitor.watch import NonFiniteError

  return (
    ConfigError,
    CheckpointError,
    DecodeError,
    TooManyBadSamples,
    NonFiniteError,
    OSError,
  )


# Error types of store clients for missing credentials (botocore, google-auth).
_CREDENTIALS = (
  "DefaultCredentialsError",
  "NoCredentialsError",
  "PartialCredentialsError",
  "ProfileNotFound",
)


def _lacks_credentials(error: BaseException) -> bool:
  return type(error).__name__ in _CREDENTIALS


def _several_processes() -> bool:
  """Whether this process runs together with others."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def _leave(status: int) -> NoReturn:
  """Ends the process without the exit handlers of JAX."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _lost_process(error: BaseException) -> bool:
  """Whether a run of several processes failed in talking to the others."""
  jax = sys.modules.get("jax")
  if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
    return False
  local = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
  return jax.process_count() > 1 and not str(error).startswith(local)


def _storage_failed(error: BaseException) -> bool:
  """Whether TensorStore met a passing fault; its errors are no OSError."""
  jax = sys.modules.get("jax")
  if jax is not None and isinstance(error, jax.errors.JaxRuntimeError):
    return False
  return not _several_processes() and failures.is_transient(error)


def _lost_status() -> int:
  """Exit status of a run that should be started again."""
  from mico_jax.run.cluster import status

  return status.LOST


def one_line(error: BaseException) -> str:
  """The message of an error in one line."""
  if isinstance(error, OSError) and error.strerror:
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror}"
  return " ".join(str(error).split()) or type(error).__name__


def _failure(error: Exception) -> int | None:
  """Reports an error that is no defect; its exit status, None for a defect.

  In a run of several processes it ends the process where returning would wait
  for a process that is lost.
  """
  if package := _missing_extra(error):
    _say(
      f"error: this needs the package {package}: {install(EXTRAS[package])}."
    )
    return 2
  if _lacks_credentials(error):
    _say(
      f"error: the store asks who you are: {one_line(error)}; set up the "
      "credentials of its client."
    )
    return 2
  if _lost_process(error):
    _say(
      f"lost another process ({one_line(error)[:200]}); start all of them "
      "again to resume."
    )
    # Not `return`: leaving JAX in order would wait for the lost one.
    _leave(_lost_status())
  if _storage_failed(error):
    _say(f"error: {failures.describe(error)}")
    return _lost_status()
  if _several_processes():
    # Leaving JAX in order would wait for the others, and they for this one.
    traceback.print_exception(error)
    _leave(1)
  return None


def _run(parsed: Any) -> int:
  """Runs a parsed command; errors of users and storage become one line."""
  try:
    return parsed.run(parsed) or 0
  except KeyboardInterrupt:
    _say("stopped.")
    return 130
  except BrokenPipeError:  # `mico-jax ... | head` is no error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except _user_errors() as e:
    _say(f"error: {one_line(e)}")
    passing = isinstance(e, OSError) and failures.is_transient(e)
    return _lost_status() if passing else 2
  except Exception as e:
    status = _failure(e)
    if status is None:
      raise
    return status


def _status(arguments: Sequence[str]) -> int:
  """The exit status of a command; a defect prints its traceback first."""
  try:
    return main(arguments)
  except KeyboardInterrupt:
    return 130
  except Exception as e:
    traceback.print_exception(e)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status.

  Args:
    argv: arguments; None: those of the process, which then ends with that
      status (see `cli.ending`).
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  args, overrides = split_overrides(arguments)
  command = next((a for a in args if not a.startswith("-")), None)
  if argv is None:
    # NumPy reads it when it is imported, which is later. Its products are
    # small, in threads that decode: more threads each would only wait.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    restart_with_huge_pages(command)
    ending.leave(_status(arguments))
  if command is not None and command not in COMMANDS:
    _say(f"error: no command {command!r}; {known_names(command, COMMANDS)}")
    return 2
  try:
    parser = make_parser(command)
    parsed: Any = parser.parse_args(args)
  except SystemExit as e:  # argparse: 0 for --help, 2 for a mistake.
    return int(e.code or 0)
  if overrides and not hasattr(parsed, "config"):
    _say(
      f"error: {parsed.command} takes no --config.{overrides[0]}; see its "
      "--help."
    )
    return 2
  parsed.overrides = overrides
  parsed.command_line = shlex.join(["mico-jax", *arguments])
  return _run(parsed)
