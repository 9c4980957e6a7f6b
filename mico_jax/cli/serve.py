"""`mico-jax serve`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mico_jax.cli import common
from mico_jax.config import ConfigError

if TYPE_CHECKING:
  from mico_jax.app.limits import Limits

DESCRIPTION = """\
Serves a page over a checkpoint: drop or record a picture, a sound, a video or a
depth map, or type a text, and see the nearest items of any modality, how well
they match, a caption, answers and what the model attends to. The items are
those of --index, or scenes of OmniWorld.

Programs ask the same by JSON: POST /embed, /search, /caption, /answer and
/attention, GET /health. A text goes as {"text": "...", "k": 5}; a file as the
body, with ?modality=KEY and, where needed, &stated=UNIT in the address.

Only this machine reaches the page unless --host says otherwise; there are no
passwords. The page asks no other server for anything. Uploads are kept in
memory while they are computed and nowhere else; of the disk, only files that
the index names are read."""
EXAMPLES = """\
  mico-jax serve --checkpoint runs/demo
  mico-jax serve --index idx --port 8080
  curl -H 'Content-Type: application/json' -d '{"text": "a red cube"}' \\
    http://127.0.0.1:8000/search
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' \\
    'http://127.0.0.1:8000/search?modality=image&k=3'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser, required=False)
  parser.add_argument(
    "--index",
    metavar="DIR",
    help="made by `mico-jax index`; its checkpoint is used unless another "
    "place of it is given (default: scenes of OmniWorld)",
  )
  parser.add_argument(
    "--scenes",
    type=common.at_most(10_000),
    default=64,
    metavar="N",
    help="of OmniWorld, without --index (default: 64)",
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="where to listen; 0.0.0.0: anybody who reaches this machine may use "
    "the page and see the items (default: 127.0.0.1)",
  )
  parser.add_argument(
    "--port",
    type=_port,
    default=8000,
    metavar="N",
    help="0: any that is free (default: 8000)",
  )
  parser.add_argument(
    "--max-mb",
    type=common.at_most(1024),
    default=32,
    metavar="N",
    help="MiB of an upload (default: 32)",
  )
  parser.add_argument(
    "--max-seconds",
    type=common.at_most(3600),
    default=60,
    metavar="N",
    help="of an uploaded sound or video (default: 60)",
  )
  parser.add_argument(
    "--queue",
    type=common.at_most(10_000),
    default=64,
    metavar="N",
    help="requests that may wait; the next is refused (default: 64)",
  )


def _port(text: str) -> int:
  value = int(text)
  if not 0 <= value < 65536:
    raise argparse.ArgumentTypeError(f"{text} must be from 0 to 65535")
  return value


_port.__name__ = "integer"  # argparse shows it


def run(args: argparse.Namespace) -> int:
  """Serves until Ctrl-C, with the address on stdout."""
  from mico_jax.app import serving
  from mico_jax.app.limits import Limits

  serving.check_installed()
  if args.index:
    from mico_jax.inference.index import Index

    args.checkpoint = args.checkpoint or Index.open(args.index).checkpoint
  if not args.checkpoint:
    raise ConfigError("give --checkpoint, or an --index that names its own.")
  mib = 2**20
  limits = Limits(
    upload_bytes=args.max_mb * mib,
    held_bytes=max(256, 4 * args.max_mb) * mib,
    seconds=float(args.max_seconds),
    waiting=args.queue,
  )
  opened = serving.listen(args.host, args.port)
  address = _address(args.host, opened.getsockname()[1])
  common.say(f"{address} (Ctrl-C ends it)")
  sys.stdout.flush()  # a program that started this one waits for it
  if not serving.is_local(args.host):
    common.note(
      f"{args.host}: anybody who reaches it may use the page and see its items."
    )
  serving.serve(
    lambda service: _load(args, limits, service),
    opened,
    hosts=serving.allowed_hosts(args.host),
    limits=limits,
    ready=lambda engine: common.note(f"ready: {engine.gallery.title}"),
  )
  return 0


def _address(host: str, port: int) -> str:
  return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _load(args: argparse.Namespace, limits: Limits, service: Any) -> Any:
  """The engine; says what it does on stderr and on the page."""
  from mico_jax.app import serving
  from mico_jax.app.engine import Engine
  from mico_jax.app.gallery import IndexGallery, WorldGallery

  common.note(f"loading {args.checkpoint} ...")
  model = common.load_model(args)

  def embedding(done: int, total: int) -> None:
    service.doing = f"embedding {args.scenes} scenes, {done} of {total} kinds"
    common.note(service.doing)

  if args.index:
    gallery: Any = IndexGallery(args.index, model)
  else:
    gallery = WorldGallery(model, args.scenes, embedding)
  return Engine(model, gallery, limits, show_paths=serving.is_local(args.host))
