"""`mico-jax data convert | inspect | stats | verify`."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mico_jax.cli import common, source_arguments
from mico_jax.config import Config, ConfigError, SourceConfig

if TYPE_CHECKING:
  from mico_jax.data.sources import Source
  from mico_jax.data.survey import Looked

DESCRIPTION = """\
convert    writes any source as shards, without re-encoding
inspect    shows fields, modalities, sizes and captions of a source
stats      counts lengths of captions, duplicates, and coverage
verify     reads and decodes every sample, and lists what is broken"""
EXAMPLES = """\
  mico-jax data convert --from imagefolder --path photos --out shards
  mico-jax data inspect --from parquet --path 'set/train-*.parquet'
  mico-jax data stats --config demo --samples 2000
  mico-jax data verify --from webdataset --path 'set/{00000..00099}.tar'"""
_SHOWN = 20  # broken samples and groups that are printed; --json has all


def add_actions(actions: Any) -> None:
  """Adds the parsers of the four actions."""
  convert = actions.add_parser("convert", help="write any source as shards")
  convert.add_argument("--out", required=True, metavar="DIR")
  convert.add_argument(
    "--to",
    choices=("array_record", "webdataset"),
    default="array_record",
    help="type of the shards (default: array_record)",
  )
  convert.add_argument(
    "--shard-samples",
    type=common.positive_int,
    default=1000,
    metavar="N",
    help="samples for each shard: what a kill can cost (default: 1000)",
  )
  convert.add_argument(
    "--strict", action="store_true", help="fail on the first broken sample"
  )
  inspect = actions.add_parser("inspect", help="show what a source holds")
  inspect.add_argument(
    "--sheet", metavar="FILE.png", help="also draw the first samples"
  )
  stats = actions.add_parser("stats", help="count captions and duplicates")
  stats.add_argument(
    "--distance",
    type=int,
    choices=range(4),
    default=0,
    help="most differing bits of 64 of pictures that look alike (default: 0)",
  )
  verify = actions.add_parser("verify", help="read and decode every sample")
  verify.add_argument(
    "--sha256", default="", metavar="HEX", help="that the index must have"
  )
  for sub, most in ((inspect, 1000), (stats, 0), (verify, 0)):
    text = f"{most}" if most else "all"
    sub.add_argument(
      "--samples",
      type=common.positive_int,
      default=most,
      metavar="N",
      help=f"spread evenly over the source (default: {text})",
    )
  for sub in (convert, inspect, stats, verify):
    source_arguments.add_source(sub)
    common.add_json(sub)


def run(args: argparse.Namespace) -> int:
  """Runs the chosen action; its exit status."""
  return ACTIONS[args.action](args)


def _with_progress(
  label: str, work: Callable[[Callable[[int, int], None]], Any]
) -> Any:
  """The result of a call that reports its progress."""
  from mico_jax.run.monitor.progress import Progress

  bars: list[Progress] = []
  last = [0]

  def progress(done: int, total: int) -> None:
    if not bars:
      bars.append(Progress(total, label=label))
    if done > last[0]:
      bars[0].update(done, samples=done - last[0])
      last[0] = done

  try:
    return work(progress)
  finally:
    for bar in bars:
      bar.close()


# --------------------------------------------------------------------- convert
def _convert(args: argparse.Namespace) -> int:
  from mico_jax.data.convert import convert, stem_of
  from mico_jax.data.inflate import inflated
  from mico_jax.data.sources import open_source

  config, name = source_arguments.config_of(args)
  spec = config.data.sources.get(name, SourceConfig())
  work = pathlib.Path(args.out) / f"{stem_of(spec)}.convert" / "tar"
  with inflated(spec, work, name) as plain:
    if plain is not spec:
      sources = {**config.data.sources, name: plain}
      data = dataclasses.replace(config.data, sources=sources)
      config = dataclasses.replace(config, data=data)
    source = open_source(config, name)
    report = _with_progress(
      "convert",
      lambda progress: convert(
        source,
        plain,
        args.out,
        to=args.to,
        shard_samples=args.shard_samples,
        strict=args.strict,
        progress=progress,
      ),
    )
  if args.json:
    common.print_json(
      {**dataclasses.asdict(report), "config": overrides(report.source)}
    )
    return 0
  for sample, kind, reason in report.errors[:_SHOWN]:
    common.note(f"{sample}: {kind}: {reason}")
  common.say(f"samples: {report.samples}")
  common.say(f"skipped: {report.skipped}")
  for kind, count in report.reasons.items():
    common.say(f"could not be read: {kind}: {count}")
  for field, count in report.unmapped.items():
    common.say(
      f"not written, as no modality is mapped to it: {field} ({count} "
      f"samples); map it with --field MODALITY={field.removeprefix('*.')}"
    )
  for field, count in report.lost.items():
    common.say(f"fields that JSON cannot hold: {field} ({count} samples)")
  if report.bare:
    common.say(f"without media: {report.bare}")
  done = f" ({report.resumed} of them before)" if report.resumed else ""
  common.say(f"shards: {len(report.files)}{done} in {args.out}")
  common.say(f"read them back: {overrides(report.source)}")
  return 0


def overrides(spec: SourceConfig, name: str = "NAME") -> str:
  """The arguments --config... that make a source of these fields."""
  default = SourceConfig()
  parts = []
  for field in dataclasses.fields(SourceConfig):
    value = getattr(spec, field.name)
    if value != getattr(default, field.name):
      text = value if isinstance(value, str) and value else repr(value)
      argument = f"--config.data.sources.{name}.{field.name}={text}"
      parts.append(shlex.quote(argument))
  return " ".join(parts)


# ---------------------------------------------------------------------- others
@dataclasses.dataclass(frozen=True)
class _Opened:
  """The source of an action.

  Attributes:
    config: of the run.
    name: of the source.
    source: open.
    indices: samples to look at.
  """

  config: Config
  name: str
  source: Source
  indices: Sequence[int]


def _open(args: argparse.Namespace) -> _Opened:
  from mico_jax.data.sources import open_source
  from mico_jax.data.survey import chosen

  config, name = source_arguments.config_of(args)
  source = open_source(config, name)
  pinned = getattr(args, "sha256", "")
  if pinned and pinned != source.sha256:
    raise ConfigError(
      f"--sha256 {pinned}: the index is another, {source.sha256}."
    )
  return _Opened(config, name, source, chosen(len(source), args.samples))


def _looked(
  opened: _Opened,
  label: str,
  take: Callable[[Iterator[Looked]], Any],
  **options: bool,
) -> Any:
  """The result of a call that gets the samples, with progress."""
  from mico_jax.data.survey import Survey

  survey = Survey(opened.config, opened.name, opened.source, **options)
  return _with_progress(
    label, lambda progress: take(survey.look(opened.indices, progress))
  )


def _inspect(args: argparse.Namespace) -> int:
  from mico_jax.data import summaries
  from mico_jax.data.sheet import draw_sheet
  from mico_jax.data.usable import group_counts

  if args.sheet and pathlib.Path(args.sheet).suffix.lower() != ".png":
    raise ConfigError(f"--sheet {args.sheet!r} must end in .png.")
  opened = _open(args)
  samples = _looked(opened, "inspect", list)
  result = {
    "kind": opened.config.data.sources[opened.name].kind,
    "samples": len(opened.source),
    "looked_at": len(samples),
    "sha256": opened.source.sha256,
    "fields": summaries.fields_table(samples),
    "media": summaries.media_table(samples),
    "captions": summaries.captions_table(samples),
    "coverage": summaries.coverage(samples),
    "groups": group_counts(
      opened.config,
      opened.name,
      [s.record for s in samples if s.record is not None],
    ),
    "broken": summaries.bad(samples),
  }
  if args.sheet:
    path = draw_sheet(opened.config, args.sheet, 8, source_name=opened.name)
    result["sheet"] = str(path)
  return _print(args, result)


def _stats(args: argparse.Namespace) -> int:
  from mico_jax.data import summaries
  from mico_jax.data.tokenizer import make_tokenizer

  opened = _open(args)
  samples = _looked(opened, "stats", list, hashes=True)
  tokens = None
  if args.config:
    tokenizer = make_tokenizer(
      opened.config.data.tokenizer,
      (
        text
        for s in samples
        if s.record is not None
        for texts in s.record.captions.values()
        for text in texts
      ),
    )
    limit = 1 << 14
    tokens = lambda text: _tokens(tokenizer, text, limit)
  result = {
    "samples": len(opened.source),
    "looked_at": len(samples),
    "captions": summaries.captions_table(samples, tokens),
    "coverage": summaries.coverage(samples),
    "duplicates": summaries.duplicates(samples, args.distance),
    "broken": summaries.bad(samples),
  }
  return _print(args, result)


def _tokens(tokenizer: Any, text: str, limit: int) -> int:
  """Number of tokens of a text, special ones included; 0 if it has none."""
  from mico_jax.modalities import DecodeError

  try:
    ids = tokenizer.encode(text, limit)
  except DecodeError:
    return 0
  return sum(int(i) != tokenizer.info.pad for i in ids)


def _verify(args: argparse.Namespace) -> int:
  from mico_jax.data import summaries

  opened = _open(args)
  broken = _looked(opened, "verify", summaries.bad, decode=True)
  count = len({entry["index"] for entry in broken})
  result = {
    "samples": len(opened.source),
    "read": len(opened.indices),
    "broken": count,
    "sha256": opened.source.sha256,
    "errors": broken,
  }
  if args.json:
    common.print_json(result)
  else:
    for entry in broken:
      common.say(
        f"{entry['id']} ({opened.name}[{entry['index']}]): "
        f"{entry['modality']}: {entry['reason']}"
      )
    common.say(f"read and decoded: {len(opened.indices)} samples")
    common.say(f"broken: {count}")
    common.say(f"index SHA-256: {opened.source.sha256}")
  return 1 if broken else 0


# -------------------------------------------------------------------- printing
def _print(args: argparse.Namespace, result: Mapping[str, Any]) -> int:
  if args.json:
    common.print_json(result)
    return 0
  for name, value in result.items():
    if name == "duplicates":
      _print_duplicates(value)
    elif isinstance(value, list):
      _print_rows(name, value)
    elif isinstance(value, Mapping):
      common.say_page(f"\n{name}\n{common.table(list(value.items()))}")
    else:
      common.say(f"{name}: {value}")
  return 0


def _print_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """A table, of at most so many rows."""
  if not rows:
    return
  header = list(dict.fromkeys(key for row in rows for key in row))
  cells = [[_text(row.get(key)) for key in header] for row in rows]
  more = len(cells) - _SHOWN if name == "broken" else 0
  common.say_page(
    f"\n{name}\n{common.table(cells[:_SHOWN] if more > 0 else cells, header)}"
  )
  if more > 0:
    common.say(f"... and {more} more (all with --json)")


def _text(value: Any) -> Any:
  """A cell: ranges as "least..median..largest"."""
  if value is None:
    return ""
  if isinstance(value, Mapping) and "median" in value:
    return "..".join(f"{value[k]:.4g}" for k in ("least", "median", "largest"))
  if isinstance(value, Mapping):
    return ", ".join(f"{k} {v}" for k, v in value.items())
  return value


def _print_duplicates(groups: Mapping[str, Any]) -> None:
  common.say("")
  for name, group in groups["ids"].items():
    common.say(f"equal ids: {name}: samples {_indices(group)}")
  for what in ("files", "pictures"):
    text = "equal files" if what == "files" else "pictures that look alike"
    for key, listed in groups[what].items():
      extra = sum(len(group) - 1 for group in listed)
      common.say(f"{text}: {key}: {len(listed)} groups, {extra} repeats")
      for group in listed[:_SHOWN]:
        common.say(f"  samples {_indices(group)}")
  if not any(groups.values()):
    common.say("no duplicates.")


def _indices(group: Sequence[int]) -> str:
  more = ", ..." if len(group) > _SHOWN else ""
  return ", ".join(map(str, group[:_SHOWN])) + more


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
  "convert": _convert,
  "inspect": _inspect,
  "stats": _stats,
  "verify": _verify,
}
