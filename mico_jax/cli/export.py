"""`mico-jax export`."""

from __future__ import annotations

import argparse
import pathlib

from mico_jax.cli import common

DESCRIPTION = """\
Writes a checkpoint in another form, with a report of every tensor, and of both
sides' outputs where the other side can run here.

  torch        modeling_mico.py (PyTorch and safetensors only), weights,
               tokenizer, and decoders of raw inputs (NumPy, Pillow); and in
               mico/ the folder that the original code loads, where its layout
               can hold the model
  mico         that folder alone
  safetensors  the weights alone: names and dtypes of the file that they were
               imported from, else parameter paths with layers apart
  timm         the encoder, for timm.create_model("local-dir:DIR")
  openclip     encoder, text tower and their heads, for
               open_clip.create_model("local-dir:DIR")
  openclip-vision
               the encoder's tensors in open_clip's names, no model
  transformers the text tower, for AutoModel and AutoTokenizer; in decoder/ with
               its cross-attention, for captions and matching
  stablehlo    a function per modality and context that JAX alone runs, on CPU,
               GPU and TPU, for any batch size"""
EXAMPLES = """\
  mico-jax export --to torch --checkpoint runs/demo --out exported/
  mico-jax export --to safetensors --checkpoint ckpts/mico-g --out weights/ \\
    --max-shard-size 2GB"""
TARGETS = (
  "torch",
  "mico",
  "safetensors",
  "timm",
  "openclip",
  "openclip-vision",
  "transformers",
  "stablehlo",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("--to", required=True, choices=TARGETS, help="the form")
  common.add_checkpoint(parser, batch_size=False)
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, metavar="DIR", help="new folder"
  )
  parser.add_argument(
    "--weights",
    choices=("ema", "raw"),
    default="ema",
    help="averaged weights, where there are any, or raw ones (default: ema)",
  )
  parser.add_argument(
    "--max-shard-size",
    default="5GB",
    metavar="SIZE",
    help="largest file of tensors (default: 5GB; timm, openclip: one file)",
  )
  parser.add_argument(
    "--compare",
    choices=("auto", "on", "off"),
    default="auto",
    help="open the export with the library it is for and compare outputs on "
    "the self-check inputs (default: up to 400 million parameters, where "
    "the library is installed)",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints the files written and how far the outputs of both sides are."""
  from mico_jax.interop import exporter
  from mico_jax.interop.exporting import export
  from mico_jax.interop.files import folders
  from mico_jax.interop.files.tensors import parse_size

  options = exporter.Options(
    max_shard_size=parse_size(args.max_shard_size),
    compare={"auto": None, "on": True, "off": False}[args.compare],
  )
  # Before a large checkpoint is read.
  exporter.check(args.to, options)
  folders.check_new(args.out)
  with common.warnings_as_lines():
    source = export.open_source(
      args.checkpoint,
      weights=args.weights,
      check=args.check,
      strict=not args.not_strict,
    )
    report = exporter.run(source, args.to, args.out, options)
  if args.json:
    common.print_json({"out": str(args.out), **report.as_dict()})
  else:
    header = ("file", "tensors", "bytes", "SHA-256")
    common.say_page(common.table(report.rows(), header))
    common.print_compared(report.compared)
  for note in report.notes:
    common.note(note)
  for line in report.failures():
    common.note(f"error: {line}")
  return 1 if report.failures() else 0
