"""Every subcommand on tiny inputs, and a user's mistakes."""

from __future__ import annotations

import errno
import importlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

import mico_jax
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli import main as cli
from mico_jax.cli.main import COMMANDS, main, module_of, split_overrides
from mico_jax.testing import tiny_checkpoint, tiny_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """A checkpoint `run`, media files, a manifest and a config file."""
  root = tmp_path_factory.mktemp("cli")
  tiny_checkpoint.save_tiny(root / "run")
  for i in range(10):
    (root / f"photo{i}.png").write_bytes(tiny_data.png(20 * i))
  (root / "sound.wav").write_bytes(tiny_data.wav())
  (root / "broken.png").write_bytes(b"\x89PNG no")
  (root / "empty.wav").write_bytes(b"")
  (root / "note.txt").write_text("a red cube")
  (root / "tiny.py").write_text(tiny_checkpoint.CONFIG_FILE)
  (root / "broken.py").write_text("def get_config(:\n")
  (root / "imports.py").write_text("import absent\n")
  (root / "dict.py").write_text("def get_config():\n  return {}\n")
  tiny_data.write_manifest(root / "set", 4)
  return root


@pytest.fixture
def here(folder, monkeypatch) -> pathlib.Path:
  monkeypatch.chdir(folder)
  return folder


def ok(capsys, *argv: str):
  """Runs a command that must succeed; returns its standard output."""
  status = main(argv)
  found = capsys.readouterr()
  assert status == 0, found.err
  return found.out


def mistake(capsys, *argv: str) -> str:
  """Runs a command that must fail with one clear line; returns it."""
  status = main(argv)
  found = capsys.readouterr()
  assert status == 2, (found.out, found.err)
  assert "Traceback" not in found.err
  lines = [x for x in found.err.splitlines() if x.startswith("mico-jax")]
  assert lines, found.err
  assert "error: " in lines[-1]
  assert not found.out
  return lines[-1]


# --------------------------------------------------------------------- common
@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_explains_with_examples(capsys, command):
  out = ok(capsys, *([command] if command else []), "--help")
  assert "examples:" in out
  assert "mico-jax" in out


def test_version_and_no_command(capsys):
  assert mico_jax.__version__ in ok(capsys, "--version")
  assert main([]) == 2
  assert main(["retrain"]) == 2
  error = capsys.readouterr().err
  assert "no command 'retrain'; known: pretrain, evaluate" in error
  assert error.endswith(". Did you mean 'pretrain'?\n")


# What the shell would offer behind words, with the script that is printed.
_COMPLETE = """\
source {script}
offer() {{
  COMP_WORDS=(mico-jax "$@"); COMP_CWORD=$#; _shtab_mico_jax 2>/dev/null
  echo "${{COMPREPLY[*]}}"
}}
offer s
offer embed --batch
offer score --check f
"""


def test_completion_completes_in_bash(capsys, tmp_path):
  script = tmp_path / "mico-jax.bash"
  script.write_text(ok(capsys, "completion", "bash"))
  done = subprocess.run(
    ["bash", "-c", _COMPLETE.format(script=script)],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  commands, option, value = done.stdout.splitlines()
  assert commands.split() == ["sweep", "samples", "search", "serve", "score"]
  assert option.split() == ["--batch-size"]
  assert value.split() == ["full", "fast"]


def test_near_names_are_proposed(capsys):
  assert main(["inspect", "--config", "demmo"]) == 2
  assert "no config 'demmo'. Did you mean 'demo'?" in capsys.readouterr().err
  words = ["inspect", "--config", "demo", "--config.data.inputs.vidoe.frames=2"]
  assert main(words) == 2
  assert "Did you mean 'video'?" in capsys.readouterr().err


def test_every_command_has_a_module_and_is_listed(capsys):
  out = ok(capsys, "--help")
  for name in COMMANDS:
    assert re.search(rf"^    {name}( |$)", out, re.MULTILINE)
    module = importlib.import_module(module_of(name))
    assert callable(module.run)
    assert callable(module.add_arguments)


def test_overrides_are_taken_out():
  args = ["pretrain", "--config", "x", "--config.train.steps=3", "--json"]
  assert split_overrides(args) == (
    ["pretrain", "--config", "x", "--json"],
    ["train.steps=3"],
  )
  args = ["--config.a.b", "-3", "x", "--config.c", "--json", "--config.d"]
  assert split_overrides(args) == (["x", "--json"], ["a.b=-3", "c", "d"])
  args = ["--config.a=1", "2", "--", "--config.b", "3"]
  rest, overrides = split_overrides(args)
  assert (rest, overrides) == (["2", "--", "--config.b", "3"], ["a=1"])


def test_module_runs_as_program():
  done = subprocess.run(
    [sys.executable, "-m", "mico_jax", "score", "--checkpoint", "nowhere",
     "--text", "x", "a.jpg"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.splitlines()[-1].startswith("mico-jax: error: a.jpg: No")
  assert "Traceback" not in done.stderr


def test_defects_keep_their_traceback(here, monkeypatch):
  def broken(*_, **__):
    raise RuntimeError("a defect")

  monkeypatch.setattr("mico_jax.inference.omni_model.load", broken)
  with pytest.raises(RuntimeError, match="a defect"):
    main(["caption", "--checkpoint", "run", "photo1.png"])


def test_defects_of_one_process_of_several_end_it_at_once(
  here, capsys, monkeypatch
):
  """In order, it would wait minutes for the others, and they for it."""

  def broken(*_, **__):
    raise RuntimeError("a defect")

  def leave(status):
    raise SystemExit(status)

  monkeypatch.setattr("mico_jax.inference.omni_model.load", broken)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(cli.os, "_exit", leave)
  with pytest.raises(SystemExit, match="1"):
    main(["caption", "--checkpoint", "run", "photo1.png"])
  assert "RuntimeError: a defect" in capsys.readouterr().err


def test_full_disk_is_one_line(here, capsys, monkeypatch):
  def full(*_, **__):
    raise CheckpointError("cannot save step 3 to runs/x: No space left.")

  monkeypatch.setattr("mico_jax.run.pretrain.pretrain", full)
  line = mistake(capsys, "pretrain", "--config", "tiny.py")
  assert "No space left" in line


# ------------------------------------------------------------ score and caption
def test_score(here, capsys):
  texts, files = ["a red cube", "a sound"], ["photo1.png", "sound.wav"]
  base = ["score", "--checkpoint", "run", "--json", "--text", texts[0]]
  rows = json.loads(ok(capsys, *base, "--text", texts[1], *files))
  want = [(file, text) for file in files for text in texts]
  assert [(r["file"], r["text"]) for r in rows] == want
  assert all(0 <= r["matching"] <= 1 for r in rows)
  assert all(-1 <= r["similarity"] <= 1 for r in rows)
  out = ok(capsys, "score", "--checkpoint", "run", "--check", "off", "--text",
           "a red cube", "normal:photo1.png")  # fmt: skip
  assert out.split()[:4] == ["file", "text", "similarity", "matching"]


def test_caption(here, capsys):
  out = ok(capsys, "caption", "--checkpoint", "run", "--check", "off",
           "--max-tokens", "3", "--beams", "2", "--json", "photo1.png",
           "sound.wav")  # fmt: skip
  assert [r["file"] for r in json.loads(out)] == ["photo1.png", "sound.wav"]


def test_a_bad_file_costs_no_other_its_caption(here, capsys):
  files = ["broken.png", "photo1.png", "absent.png", "sound.wav", "photo1.png"]
  status = main(["caption", "--checkpoint", "run", "--check", "off",
                 "--max-tokens", "3", "--json", *files])  # fmt: skip
  found = capsys.readouterr()
  assert status == 0
  rows = json.loads(found.out)
  assert [r["file"] for r in rows if "caption" in r] == files[1::2] + files[4:]
  assert [r["file"] for r in rows if "error" in r] == files[::2][:2]
  assert "skipped: broken.png: not a readable image" in found.err
  assert "2 of 5 files skipped" in found.err


def test_drawn_captions_keep_with_their_place(here, capsys):
  def draw(files, *options):
    words = ["caption", "--checkpoint", "run", "--check", "off", "--json"]
    words += ["--max-tokens", "3", "--top-p", "1", "--seed", "3"]
    assert main([*words, *options, *files]) == 0
    rows = json.loads(capsys.readouterr().out)
    return [r["caption"] for r in rows if "caption" in r]

  drawn = draw(["photo1.png", "photo1.png", "sound.wav", "photo1.png"])
  assert len({drawn[0], drawn[1], drawn[3]}) > 1
  # A broken file changes nothing of the others.
  assert (
    draw(["broken.png", "photo1.png", "sound.wav", "photo1.png"]) == (drawn[1:])
  )
  assert draw(["photo1.png"] * 2, "--seed", "4") != drawn[:2]
  words = ("caption", "--checkpoint", "run", "--check", "off", "photo1.png")
  for options, message in (
    (("--top-p", "2"), "top_p=2.0: must be a number from 0 to 1"),
    (("--length-penalty", "nan"), "length_penalty=nan: must be a finite"),
    (("--top-p", "1", "--beams", "2"), "which 2 beams cannot"),
  ):
    assert message in mistake(capsys, *words, *options)


def test_names_on_stdin_may_hold_anything(here, capsys, tmp_path, monkeypatch):
  loop = tmp_path / "loop.png"
  loop.symlink_to(loop)
  names = f"a\0b.png\n{loop}\n photo1.png\nphoto1.png\n\n"
  monkeypatch.setattr("sys.stdin", io.StringIO(names))
  out = str(tmp_path / "v.npy")
  printed = ok(
    capsys, "embed", "--checkpoint", "run", "--check", "off", "--out", out, "-"
  )
  assert "1 items" in printed
  assert "3 files skipped" in printed


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (["absent.png"], "absent.png: No such file"),
    (["broken.png"], "broken.png: not a readable image"),
    (["empty.wav"], "empty.wav: the file is empty"),
    (["what.xyz"], "unknown file type"),
    (["depth:photo1.png"], "depth needs its unit"),
    (["note.txt"], "is text; expected one of"),
  ],
)
def test_bad_files(here, capsys, files, message):
  base = ["caption", "--checkpoint", "run", "--check", "off"]
  assert message in mistake(capsys, *base, *files)


def test_empty_text_and_missing_checkpoint(here, capsys):
  base = ["score", "--checkpoint", "run", "--check", "off"]
  assert "empty" in mistake(capsys, *base, "--text", "", "photo1.png")
  line = mistake(capsys, "caption", "--checkpoint", "set", "photo1.png")
  assert "holds no checkpoint" in line


# ---------------------------------------------------------------------- embed
def test_embed_parquet_skips_bad_files(here, capsys, tmp_path):
  import pyarrow.parquet as pq

  out = tmp_path / "v.parquet"
  files = ["photo1.png", "broken.png", "sound.wav", "absent.png", "note.txt"]
  printed = ok(capsys, "embed", "--checkpoint", "run", "--check", "off",
               "--out", str(out), *files)  # fmt: skip
  assert "3 items" in printed
  assert "items/s" in printed
  assert "2 files skipped" in printed
  rows = pq.read_table(out).to_pylist()
  assert [r["id"] for r in rows] == ["photo1.png", "sound.wav", "note.txt"]
  assert [r["modality"] for r in rows] == ["image", "audio", "text"]
  assert np.linalg.norm(rows[0]["embedding"]) == pytest.approx(1, abs=1e-5)
  listed = (tmp_path / "v.parquet.errors.jsonl").read_text().splitlines()
  errors = [json.loads(line) for line in listed]
  assert [e["path"] for e in errors] == ["broken.png", "absent.png"]
  assert not (tmp_path / "v.parquet.parts").exists()
  base = ["embed", "--checkpoint", "run", "--check", "off", "--out"]
  assert "exists" in mistake(capsys, *base, str(out), "photo1.png")


def test_embed_equals_the_api(here, capsys, tmp_path):
  out = tmp_path / "v.npy"
  names = [f"photo{i}.png" for i in range(3)]
  ok(capsys, "embed", "--checkpoint", "run", "--check", "off", "--out",
     str(out), *names)  # fmt: skip
  model = mico_jax.load("run", check="off")
  want = model.embed(image=names)["image"]
  np.testing.assert_allclose(np.load(out), want, atol=1e-6)
  lines = out.with_suffix(".jsonl").read_text().splitlines()
  assert [json.loads(x)["id"] for x in lines] == names


def test_embed_resumes_after_a_kill(here, capsys, tmp_path, monkeypatch):
  from mico_jax.run.commands import embed as job

  names = [f"photo{i}.png" for i in range(10)]
  whole, out = tmp_path / "whole.npy", tmp_path / "v.npy"
  base = ["embed", "--checkpoint", "run", "--check", "off", "--shard-size", "3"]
  ok(capsys, *base, "--out", str(whole), *names)
  real, calls = job._write_shard, []

  def killed(*args):
    if len(calls) == 2:
      raise KeyboardInterrupt
    calls.append(args)
    real(*args)

  monkeypatch.setattr(job, "_write_shard", killed)
  assert main([*base, "--out", str(out), *names]) == 130
  assert not out.exists()
  monkeypatch.setattr(job, "_write_shard", real)
  assert "unfinished job" in mistake(
    capsys, *base, "--out", str(out), *names[:5]
  )
  printed = ok(capsys, *base, "--out", str(out), "--json", *names)
  report = json.loads(printed)
  assert (report["items"], report["resumed"], report["failed"]) == (10, 6, 0)
  np.testing.assert_array_equal(np.load(out), np.load(whole))


def test_embed_manifest(here, capsys, tmp_path):
  out = tmp_path / "v.npz"
  ok(capsys, "embed", "--checkpoint", "run", "--check", "off", "--out",
     str(out), "set/manifest.jsonl", "--modality", "image")  # fmt: skip
  with np.load(out) as found:
    assert found["embeddings"].shape == (4, 32)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--out", "v.csv", "photo1.png"], "must end in .parquet"),
    (["--out", "v.npy", "absent.jsonl"], "absent.jsonl"),
    (["--out", "v.npy", "broken.png"], "none of 1 files could be read"),
    (["--out", "v.npy", "--modality", "x", "a.jsonl"], "--modality x"),
    (["--out", "v.npy", "what.xyz"], "unknown file type"),
    (
      ["--out", "set/manifest.npy", "--overwrite", "set/manifest.jsonl"],
      "which is an input",
    ),
  ],
)
def test_embed_mistakes(here, capsys, tmp_path, argv, message):
  if not argv[1].startswith("set/"):
    argv[1] = str(tmp_path / argv[1])
  base = ["embed", "--checkpoint", "run", "--check", "off"]
  assert message in mistake(capsys, *base, *argv)


def test_embed_and_score_take_sources(here, capsys, tmp_path):
  """Samples of tar shards give what their files give."""
  names = ["photo1.png", "photo9.png"]
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    for i, name in enumerate(names):
      tar.add(name, f"s{i}.png")
  base = ["--checkpoint", "run", "--check", "off"]
  data = ["--from", "webdataset", "--path", str(tmp_path / "x.tar")]
  out = tmp_path / "v.npy"
  ok(capsys, "embed", *base, "--out", str(out), *names, *data)
  vectors = np.load(out)
  np.testing.assert_allclose(vectors[:2], vectors[2:], atol=1e-6)
  table = json.loads(
    ok(capsys, "score", *base, "--text", "a cube", "--json", *names, *data)
  )
  assert [x["file"] for x in table] == [*names, "image:s0", "image:s1"]
  scores = [x["similarity"] for x in table]
  assert scores[:2] == pytest.approx(scores[2:], abs=1e-6)
  assert scores[0] != pytest.approx(scores[1], abs=1e-6)
  for command in (["embed", "--out", "x.npy"], ["score", "--text", "x"]):
    said = mistake(capsys, *command, "--checkpoint", "run")
    assert "name files, or give --from KIND and --path PATH" in said


# ------------------------------------------------------- inspect, doctor, data
def test_inspect(here, capsys):
  found = json.loads(ok(capsys, "inspect", "--checkpoint", "run", "--json"))
  assert found["step"] == 1
  assert found["config"]["name"] == "tiny"
  assert found["counts"]["total"] == sum(
    v for k, v in found["counts"].items() if k != "total"
  )
  out = ok(capsys, "inspect", "--config", "tiny.py",
           "--config.model.vision.depth=3")  # fmt: skip
  assert "vision.blocks.attn.qkv.kernel" in out
  first = out[: out.index("{")]
  assert re.search(r"^name +tiny$", first, re.MULTILINE)
  assert re.search(r"^vision +vit 32 x 3, ", first, re.MULTILINE)
  assert re.search(r"^task \w+ +.*; batch of \d+$", first, re.MULTILINE)
  assert "(3, 32, 96)" in out


def test_doctor(capsys):
  found = json.loads(ok(capsys, "doctor", "--json"))
  assert found["versions"]["mico_jax"] == mico_jax.__version__
  assert found["devices"]["backend"] == jax.default_backend()
  assert "pyarrow" in ok(capsys, "doctor")


def test_data_sheet_build_and_tokenizer(here, capsys, tmp_path):
  sheet = tmp_path / "sheet.png"
  ok(capsys, "data", "sheet", "--config", "tiny.py", "--samples", "2",
     "--out", str(sheet))  # fmt: skip
  assert sheet.stat().st_size > 1000
  out = ok(capsys, "data", "build", "--manifest", "set/manifest.jsonl",
           "--out", str(tmp_path / "packed"), "--json")  # fmt: skip
  assert json.loads(out)["samples"] == 4
  out = ok(capsys, "data", "tokenizer", "--config", "tiny.py", "--samples",
           "64", "--out", str(tmp_path / "w.model"), "--json")  # fmt: skip
  assert json.loads(out)["vocab_size"] > 256
  line = mistake(capsys, "data", "build", "--manifest", "absent.jsonl",
                 "--out", str(tmp_path / "x"))  # fmt: skip
  assert "absent.jsonl" in line


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["pretrain", "--config", "absent"], "no config 'absent'"),
    (["pretrain", "--config", "absent.py"], "no config file"),
    (["pretrain", "--config", "tiny.py", "--config.train.stepz=3"], "steps"),
    (["pretrain", "--config", "tiny.py", "--config.train.steps=x"], "int"),
    (["pretrain", "--config", "tiny.py", "--init", "absent"], "absent"),
    (["pretrain", "--config", "tiny.py:x"], "takes no argument"),
    (["inspect", "--config", "broken.py"], "broken.py, line 1: "),
    (["inspect", "--config", "imports.py"], "No module named 'absent'"),
    (["inspect", "--config", "dict.py"], "must return a ConfigDict"),
    (["inspect", "--config", "tiny.py", "--config.model.text.num_heads=5"],
     "must divide"),
    (["doctor", "--config.train.steps=3"], "takes no --config.train.steps"),
    (["trace", "--workdir", "set", "--step", "1"], "no workdir"),
    (
      ["evaluate", "--checkpoint", "run", "--check", "off",
       "--config.model.embed_dim=3"],
      "belongs to the checkpoint",
    ),
  ],
)  # fmt: skip
def test_config_mistakes(here, capsys, tmp_path, argv, message):
  if argv[0] == "pretrain":
    argv = [*argv, "--workdir", str(tmp_path / "w")]
  assert message in mistake(capsys, *argv)


# -------------------------------------------- pretrain, then trace and evaluate
def test_pretrain_trace_evaluate(here, capsys, tmp_path):
  work = str(tmp_path / "work")
  base = ["pretrain", "--config", "tiny.py", "--workdir", work]
  found = json.loads(ok(capsys, *base, "--json"))
  assert found["step"] == 4
  assert found["results"]
  assert "R@1" in ok(capsys, *base)  # Nothing left to train: evaluates again.
  line = mistake(capsys, *base, "--config.seed=5")
  assert "belongs to another config: seed: 0, now 5" in line
  traced = json.loads(
    ok(capsys, "trace", "--workdir", work, "--step", "3", "--json")
  )
  assert traced["task"] == "av"
  assert len(traced["rows"]) == 8
  picture = tmp_path / "t.png"
  ok(capsys, "trace", "--workdir", work, "--step", "3", "--show", "--out",
     str(picture))  # fmt: skip
  assert picture.exists()
  assert "steps 0 to 3" in mistake(
    capsys, "trace", "--workdir", work, "--step", "4"
  )
  out = ok(capsys, "evaluate", "--checkpoint", work, "--json", "--out",
           str(tmp_path / "e"), "--config.evaluation.size=6")  # fmt: skip
  names = {r["name"] for r in json.loads(out)["results"]}
  assert any(name.endswith("R@1") for name in names)
  assert (tmp_path / "e" / "evaluation.json").exists()


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (OSError(errno.ENOSPC, "No space left on device"), 75),
    (OSError(errno.ESTALE, "Stale file handle"), 75),
    (ConnectionResetError("reset"), 75),
    (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
  ],
)
def test_passing_faults_of_storage_ask_for_a_restart(
  monkeypatch, capsys, error, code
):
  def fail(args):
    raise error

  monkeypatch.setattr("mico_jax.cli.doctor.run", fail)
  assert main(["doctor"]) == code
  assert capsys.readouterr().err.count("\n") == 1
