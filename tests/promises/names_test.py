"""Promise: no modality is named outside `mico_jax/modalities`.

What is known of a modality stands in its record, so no other code compares a
key ("audio") or a letter ("a") with one of the table. Literals of the code are
searched; comments and docstrings may name what they like.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

import mico_jax
from mico_jax.modalities import MODALITIES

PACKAGE = pathlib.Path(mico_jax.__file__).parent
# The side that every group is compared with. The word also names the text tower
# and the texts of a batch, and no record could be put in its place.
QUERY = MODALITIES["text"]
WORDS = {m.key for m in MODALITIES.values()} | {
  m.letter for m in MODALITIES.values()
}
WORDS -= {QUERY.key, QUERY.letter}

# Rooms that speak of single modalities, and why.
ROOMS = {
  "modalities": "the records",
  "world": "its scenes are seen and heard in ways of their own",
  "config": "defaults of options",
  "configs": "a recipe chooses modalities",
  "testing": "makes files and references of single modalities",
  "benchmarks": "measures one modality's path",
  "harnesses": "the interfaces of others, which name modalities",
}
# File -> words it may say, and why.
FILES: dict[str, tuple[str, str]] = {
  # Formats of others, whose names are mapped to ours.
  "interop/names/mico.py": ("video audio depth n subtitle", "the original"),
  "interop/importing/mico_folder.py": (
    "image video audio depth normal subtitle",
    "the original's options of each modality",
  ),
  "interop/exporting/official_folder.py": (
    "video audio depth subtitle",
    "the original",
  ),
  "interop/exporting/openclip_folder.py": ("image v", "a client of pictures"),
  "interop/exporting/timm_folder.py": ("image v depth", "a client of pictures"),
  "interop/importing/towers.py": ("image video x", "towers of pictures"),
  "extras.py": ("pointcloud", "the extra of its files' readers"),
  "data/build/hf.py": ("image audio", "a chat of transformers"),
  "data/build/sets/credit_card_fraud.py": ("tabular", "one data set"),
  "data/build/sets/ego4d_imu.py": ("imu", "one data set"),
  "data/build/sets/global_temperature.py": ("timeseries", "one data set"),
  "data/build/sets/indian_pines.py": ("hyperspectral", "one data set"),
  "data/build/sets/pcqm4mv2.py": ("graph", "one data set"),
  "data/build/sets/regdb.py": ("image thermal", "one data set"),
  "data/build/sets/sysu_mm01.py": ("image thermal", "one data set"),
  "data/build/inputs/metadata.py": ("audio subtitle", "the columns of VAST"),
  "data/sources/omniworld.py": (
    "video depth normal thermal",
    "the arrays of OmniWorld",
  ),
  "run/commands/samples.py": (
    "video audio depth normal",
    "the arrays of OmniWorld, as files",
  ),
  "run/commands/describe.py": ("k", "thousands of parameters"),
  "data/sources/coco.py": ("image", "the pictures of COCO"),
  "data/sources/imagefolder.py": ("image", "a folder of pictures"),
  "data/sources/vast.py": ("video audio", "the captions and clips of VAST"),
  # A section of the config.
  "evaluation/features.py": ("audio", "config.data.audio"),
  "interop/exporting/torch_folder.py": ("audio", "config.data.audio"),
  "interop/importing/exported.py": ("audio", "config.data.audio"),
  "inference/zero_shot.py": ("image", "the first argument, as of others"),
  "interop/torch_template/modeling_mico.py": (
    "audio depth image",
    "config.data.audio; config.model.*.depth, a number of blocks; the first "
    "argument of zero_shot",
  ),
  "interop/torch_template/sentence_mico.py": (
    "image video audio",
    "inputs of sentence-transformers",
  ),
  "train/finetuning.py": ("image video audio", "settings of data sets"),
  # A number of blocks.
  "docs/models_page.py": ("depth", "config.model.*.depth"),
  "interop/importing/transformers_vision.py": ("depth", "config.model.*.depth"),
  "interop/names/mico_vision.py": ("depth", "config.model.*.depth"),
  "interop/importing/timm_vision.py": ("depth", "config.model.*.depth"),
  "models/staged.py": ("depth", "config.model.*.depth"),
  # A letter of something else.
  "app/server.py": ("k", "how many hits are asked for"),
  "checkpoint/placement.py": ("u", "a kind of dtype"),
  "data/index/riegeli.py": ("r", "the mode of a file"),
  "data/media_files.py": ("r", "the mode of a file"),
  "inference/index.py": ("r", "the mode of a file"),
  "run/commands/index.py": ("r", "the mode of a file"),
  "run/sweep/picture.py": ("k", "thousands"),
  "interop/exporting/stablehlo.py": ("b", "a symbolic batch size"),
  "parallel/rendezvous.py": ("r", "the mode of a file"),
  "plan/gpu.py": ("x", "between two numbers"),
  "plan/program.py": ("x", "between two numbers"),
  "plan/topology.py": ("x", "between two numbers"),
  "run/commands/sharding_view.py": ("x", "between two numbers"),
  "run/commands/result_page.py": ("n", "the number of items of a result"),
  "data/sources/tfds.py": ("i", "a kind of dtype"),
  "evaluation/ptb.py": ("n", "a letter of a word"),
  "evaluation/vqa_answers.py": ("a", "an article"),
  "interop/names/transformers_vision.py": ("k v", "queries, keys, values"),
  "models/presets.py": ("b h s", "sizes of encoders"),
  "models/swin.py": ("b s", "sizes of encoders"),
  "models/unireplknet.py": ("a b n p s", "sizes of encoders"),
  "run/monitor/headlines.py": ("y", "an axis"),
  "run/monitor/report.py": ("s", "a plural"),
  "train/lora.py": ("a b", "the factors of a delta"),
}


def room_of(place: str) -> str:
  return place.partition("/")[0].removesuffix(".py")


def literals(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Line and text of the strings in a file's code; formats are none."""
  nodes = list(ast.walk(ast.parse(path.read_text())))
  formats = {
    id(part)
    for node in nodes
    if isinstance(node, ast.FormattedValue) and node.format_spec
    for part in ast.walk(node.format_spec)
  }
  for node in nodes:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    if text and id(node) not in formats:
      yield node.lineno, node.value


def named() -> dict[str, list[tuple[int, str]]]:
  """File -> line and word of what names a modality."""
  found: dict[str, list[tuple[int, str]]] = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    hits = [(line, word) for line, word in literals(path) if word in WORDS]
    place = path.relative_to(PACKAGE).as_posix()
    if hits and room_of(place) not in ROOMS:
      found[place] = hits
  return found


def test_no_modality_is_named_outside_its_record():
  problems = [
    f"{where}:{line}: {word!r} is a modality; ask its record"
    for where, hits in named().items()
    for line, word in hits
    if word not in FILES.get(where, ("", ""))[0].split()
  ]
  assert not problems, "\n".join(problems)


def test_every_exception_is_needed():
  found = {where: {word for _, word in hits} for where, hits in named().items()}
  allowed = {where: set(words.split()) for where, (words, _) in FILES.items()}
  stale = {w: v - found.get(w, set()) for w, v in allowed.items()}
  assert not {w: v for w, v in stale.items() if v}


@pytest.mark.parametrize("key", [k for k in MODALITIES if k != QUERY.key])
def test_the_search_finds_a_name(key, tmp_path):
  path = tmp_path / "x.py"
  path.write_text(f'"""{key}."""\n\n# {key}\nif a == "{key}":\n  pass\n')
  assert [line for line, word in literals(path) if word in WORDS] == [4]
