"""`mico-jax import`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.interop.importing.formats import FORMATS

_HEAD = """\
Reads weights of other libraries into a checkpoint that every command takes and
`pretrain --init` starts from. Every tensor is accounted for, or the command
fails and lists the names that are missing, unexpected or of another shape.

"""
_TAIL = """

PATH may be hf://owner/name (needs huggingface_hub). PyTorch files need torch,
.safetensors files do not. No code in a file is ever run. The report is stored
in the checkpoint as import_report.json."""
DESCRIPTION = (
  _HEAD
  + "\n".join(f"  {name:<9} {form.about}" for name, form in FORMATS.items())
  + _TAIL
)
EXAMPLES = """\
  mico-jax import --from mico MiCo-g/ --out ckpts/mico-g --vocab vocab.txt
  mico-jax import --from mico hf://Yiyuan/MiCo-ViT-g-14-omnimodal-300k-b64K \\
    --out ckpts/mico-g --vocab vocab.txt
  mico-jax import --from hf hf://facebook/dinov2-base --out dinov2
  mico-jax import --from bert hf://google-bert/bert-base-uncased --out bert
  mico-jax import --from evaclip EVA.pt --onto bert --out start"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "--from",
    dest="form",
    required=True,
    choices=tuple(FORMATS),
    help="what PATH holds",
  )
  parser.add_argument("path", metavar="PATH", help="file, folder or hf://")
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="checkpoint to write"
  )
  parser.add_argument(
    "--vocab",
    metavar="FILE",
    help="vocab.txt or tokenizer.json of the text tower, copied into the "
    "checkpoint (default: the one beside the weights; for a fresh text tower "
    "the tokenizer shipped here)",
  )
  parser.add_argument(
    "--onto",
    metavar="CKPT",
    help="checkpoint that gives what the weights lack (default: fresh values)",
  )
  parser.add_argument(
    "--self-check",
    choices=("auto", "on", "off"),
    default="auto",
    help="store inputs with their outputs, compared at each load; slow for "
    "large models (default: for models up to 400 million parameters)",
  )
  parser.add_argument(
    "--drop-extra",
    action="store_true",
    help="do not keep tensors that the model has no use for",
  )
  # `--config.model.vision.image_size=384` changes the derived config.
  parser.set_defaults(config=None)
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Imports and prints the report."""
  from mico_jax.interop.exporting import export
  from mico_jax.interop.importer import import_checkpoint

  with common.warnings_as_lines():
    report = import_checkpoint(
      args.form,
      args.path,
      args.out,
      vocabulary=args.vocab,
      onto=args.onto,
      overrides=args.overrides,
      self_check={"auto": None, "on": True, "off": False}[args.self_check],
      keep_extra=not args.drop_extra,
    )
  for line in report.guesses:
    common.note(f"note: {line}")
  failures = export.failures(report.compared)
  for line in failures:
    common.note(f"error: in PyTorch, {line}")
  if args.json:
    common.print_json(report.as_dict())
    return 1 if failures else 0
  rows = [
    ("checkpoint", report.checkpoint),
    ("tensors", f"{len(report.tensors):,}"),
    ("bytes", f"{report.bytes:,}"),
    ("sha256 of all tensors", report.tensors_sha256),
    ("parameters", f"{report.parameters:,}"),
    *((name, listed(getattr(report, name))) for name in _LISTS),
    *(("note", note) for note in report.notes),
    *(
      (name.removeprefix("output/"), " ".join(f"{x:.6g}" for x in values))
      for name, values in report.outputs.items()
    ),
  ]
  common.say_page(common.table([row for row in rows if row[1]]))
  common.print_compared(report.compared)
  return 1 if failures else 0


_LISTS = ("resized", "extra", "new", "taken")


def listed(names: list[str], limit: int = 4) -> str:
  """The first names and how many there are; "" for none."""
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(names[:limit]) + more
