"""`mico-jax completion`."""

from __future__ import annotations

import argparse
from typing import Any

from mico_jax.cli import common

DESCRIPTION = """\
Prints a script for a shell that completes commands, options and names of files
(extra `completion`)."""
EXAMPLES = """\
  mico-jax completion bash > ~/.local/share/bash-completion/completions/mico-jax
  mico-jax completion zsh > ~/.zfunc/_mico-jax  # with fpath+=~/.zfunc"""
SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("CKPT", "DIR", "FILE", "PATH", "PNG")  # metavars of places on disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("shell", choices=SHELLS, help="which shell reads it")


def run(args: argparse.Namespace) -> int:
  """Prints the script of all commands."""
  import shtab

  from mico_jax.cli.main import make_parser

  parser = make_parser(None, whole=True)
  _complete_files(parser, shtab.FILE)
  common.say_page(shtab.complete(parser, shell=args.shell))
  return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
  """Lets arguments that name files be completed by them, in all commands."""
  actions: Any = parser._actions
  for action in actions:
    if isinstance(action, argparse._SubParsersAction):
      for sub in action.choices.values():
        _complete_files(sub, files)
    elif action.metavar in _FILES and not action.choices:
      action.complete = files
