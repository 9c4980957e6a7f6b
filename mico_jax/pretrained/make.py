r"""Packages the last checkpoint of a run as weights that come with mico_jax.

    python -m mico_jax.pretrained.make runs/demo --name omniworld-tiny \
      --command "mico-jax pretrain --config demo" --commit HASH

Parameters are rounded to bfloat16 (averaged ones where the run has them) and
written as a step folder by the ordinary writer, with a self-check of the
rounded ones; NAME.zip beside this file is that folder. It is evaluated as the
run's config says, and NAME.json tells both sides: the run's own evaluation
before rounding, and this one. Then add the name to `WEIGHTS`, write the tables
(`python -m mico_jax.docs.tables`) and note the hash in docs/results.md.

The numbers are stored as float32, in which every bfloat16 is exact, so that the
folder opens and exports like any other; the zip file hardly grows by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import pathlib
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore
from mico_jax.checkpoint.described import Extras
from mico_jax.checkpoint.manager import Manager
from mico_jax.checkpoint.mirror import COMMIT
from mico_jax.checkpoint.steps import CHECKPOINTS
from mico_jax.config import ConfigError
from mico_jax.data.tokenizer import tokenizer_from_files
from mico_jax.inference.omni_model import load
from mico_jax.inference.self_check import make_self_check
from mico_jax.pretrained import Weights
from mico_jax.run.commands.evaluate import evaluate_model

DTYPE = "bfloat16"
LICENCE = "Apache-2.0"
_MOST = 3 * 2**20  # bytes: the package stays small
_DAY = (1980, 1, 1, 0, 0, 0)  # of all files in the archive
_DIGITS = 4  # of scores


@dataclasses.dataclass
class _State:
  """Parameters alone, as the writer takes a train state."""

  params: Mapping[str, Any]
  opt_state: Any = None
  ema: Any = None


def write_rounded(
  source: restore.Checkpoint, workdir: pathlib.Path
) -> pathlib.Path:
  """Writes a checkpoint's parameters, rounded; returns the step folder.

  Args:
    source: with its parameters.
    workdir: a new folder.
  """
  flat = manifest_lib.flatten(source.params)
  rounded = {
    path: np.asarray(value, np.float32)
    .astype(ml_dtypes.bfloat16)
    .astype(np.float32)
    for path, value in flat.items()
  }
  files = source.tokenizer_files()
  entries = source.manifest["items"][source.source]
  axes = {k: e["axes"] for k, e in entries.items() if "axes" in e}
  tokenizer = tokenizer_from_files(files)
  extras = Extras(
    logical_axes=manifest_lib.unflatten(axes),
    tokenizer_files=files,
    tokenizer_info=source.manifest["tokenizer"],
    preprocessing=source.manifest["preprocessing"],
    topology=source.manifest["topology"],
    self_check=make_self_check(source.config, tokenizer),
  )
  manager = Manager(workdir, config=source.config, extras=extras)
  manager.save(source.step, _State(manifest_lib.unflatten(rounded)))
  manager.close()
  return workdir / CHECKPOINTS / str(source.step)


def archive(folder: pathlib.Path) -> bytes:
  """The zip file of a step folder."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as target:
    for path in sorted(folder.rglob("*")):
      if path.is_file():
        name = path.relative_to(folder).as_posix()
        info = zipfile.ZipInfo(name, _DAY)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        # Orbax writes there where the folder lay on this machine.
        done = path.name == COMMIT
        data = b"complete" if done else path.read_bytes()
        target.writestr(info, data, compresslevel=9)
  return buffer.getvalue()


def run_scores(run: pathlib.Path, fingerprint: str) -> dict[str, float]:
  """The headline results of a run's own evaluation at its end.

  Args:
    run: workdir.
    fingerprint: of its last checkpoint.

  Raises:
    ConfigError: if it has none of that checkpoint.
  """
  path = run / "evaluation.json"
  results = []
  if path.is_file():
    results = json.loads(path.read_text())["results"]
  if {r["checkpoint_sha256"] for r in results} != {fingerprint}:
    raise ConfigError(
      f"{path} is not an evaluation of the run's last checkpoint; finish the "
      "run, or write one with mico-jax evaluate --out."
    )
  return _scores(results)


def _scores(results: Any) -> dict[str, float]:
  return {r["name"]: round(r["value"], _DIGITS) for r in results}


def make(args: argparse.Namespace) -> Weights:
  """Writes NAME.zip and NAME.json.

  Raises:
    ConfigError: if the run is not evaluated, or its file would be too large.
    CheckpointError: if its last checkpoint does not verify.
  """
  run, out = pathlib.Path(args.run), pathlib.Path(args.out)
  source = restore.open_checkpoint(run)
  fingerprint = manifest_lib.fingerprint(source.folder)
  before = run_scores(run, fingerprint)
  with tempfile.TemporaryDirectory(prefix="mico_jax_") as workdir:
    folder = write_rounded(source, pathlib.Path(workdir))
    content = archive(folder)
    if len(content) > _MOST:
      raise ConfigError(
        f"{run}: packaged it has {len(content):,} bytes, at most {_MOST:,} are "
        "shipped; take a smaller model."
      )
    print(f"{len(content):,} bytes; evaluating ...", file=sys.stderr)
    model = load(folder)
    evaluation = f"mico-jax evaluate --checkpoint {args.name}"
    results = evaluate_model(model, command=evaluation)
  scores = _scores([result.as_dict() for result in results])
  sizes = [np.size(v) for v in manifest_lib.flatten(source.params).values()]
  weights = Weights(
    name=args.name,
    sha256=hashlib.sha256(content).hexdigest(),
    bytes=len(content),
    step=source.step,
    parameters=sum(sizes),
    dtype=DTYPE,
    modalities=model.modalities,
    data=args.data,
    licence=LICENCE,
    command=args.command,
    commit=args.commit,
    run=fingerprint,
    evaluation=evaluation,
    scores=scores,
    before={name: before[name] for name in scores if name in before},
  )
  (out / f"{args.name}.zip").write_bytes(content)
  text = json.dumps(dataclasses.asdict(weights), indent=1) + "\n"
  (out / f"{args.name}.json").write_text(text, encoding="utf-8")
  return weights


def main(argv: list[str] | None = None) -> None:
  """Packages a run and prints what rounding changed."""
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.pretrained.make",
    description="Packages the last checkpoint of a run.",
  )
  parser.add_argument("run", metavar="RUN", help="workdir, with evaluation")
  parser.add_argument("--name", required=True, help="that `load` will take")
  parser.add_argument(
    "--command", required=True, metavar="TEXT", help="command that made the run"
  )
  parser.add_argument(
    "--commit", required=True, metavar="HASH", help="of the repository then"
  )
  parser.add_argument(
    "--data", default="OmniWorld v1", help="that it was trained on"
  )
  parser.add_argument(
    "--out",
    default=str(pathlib.Path(__file__).parent),
    metavar="DIR",
    help="folder of the files (default: this package)",
  )
  weights = make(parser.parse_args(argv))
  print(f"sha256 {weights.sha256}, {weights.bytes:,} bytes")
  for name, value in weights.scores.items():
    then = weights.before.get(name)
    change = "" if then is None else f"  {then:.4f}  {value - then:+.4f}"
    print(f"{name:<48} {value:.4f}{change}")


if __name__ == "__main__":
  main()
