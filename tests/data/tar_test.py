"""Tar files as they are found: what belongs to a sample is never a guess."""

from __future__ import annotations

import shutil
import subprocess
import tarfile

import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.sources import open_source
from mico_jax.data.tar import TarIndex
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  write_manifest,
  write_tar,
)


def _open(tmp_path, members, **options):
  write_tar(tmp_path / "x.tar", members)
  spec = SourceConfig(
    kind="webdataset", path=str(tmp_path / "x.tar"), **options
  )
  return open_source(config_of(a=spec), "a")


def _refused(tmp_path, members, match, **options):
  with pytest.raises(ConfigError, match=match) as error:
    _open(tmp_path, members, **options)
  text = str(error.value)
  assert "\n" not in text
  assert "x.tar" in text
  return text


PAIR = [("a.png", png(1)), ("a.txt", b"one"), ("b.png", png(2)),
        ("b.txt", b"two")]  # fmt: skip


def test_members_that_repeat_are_counted_and_named(tmp_path):
  text = _refused(
    tmp_path, [*PAIR, ("a.png", png(3)), ("./a.png", png(4))], "1 member names"
  )
  assert "a.png 3 times" in text
  assert "2 members would be lost" in text


def test_a_reference_to_a_repeated_member_is_a_bad_sample(tmp_path):
  write_tar(tmp_path / "t.tar", [*PAIR, ("a.png", png(3))])
  path = write_manifest(tmp_path, 2, image=["t.tar:a.png", "t.tar:b.png"])
  source = open_source(config_of(a=manifest_source(path)), "a")
  with pytest.raises(DecodeError, match=r"'a\.png' occurs 2 times"):
    source.record(0).media["image"]()
  assert source.record(1).media["image"]() == png(2)


DOTS = [(f"v1/2.{i} (x).{e}", d) for i in range(2)
        for e, d in (("png", png(i)), ("txt", b"thing %d" % i))]  # fmt: skip


def test_dots_in_keys(tmp_path):
  text = _refused(tmp_path, DOTS, "keys end at the first dot")
  assert "2 members" in text
  assert "key_dot='last'" in text
  source = _open(tmp_path, DOTS, key_dot="last")
  found = [source.record(i) for i in range(len(source))]
  assert [r.id for r in found] == ["v1/2.0 (x)", "v1/2.1 (x)"]
  assert [r.captions["omni"] for r in found] == [("thing 0",), ("thing 1",)]
  assert [r.media["image"]() for r in found] == [png(0), png(1)]


def test_two_pictures_of_one_sample_need_a_name(tmp_path):
  both = [("a.rgb.png", png(1)), ("a.mask.png", png(2)), ("a.txt", b"one")]
  text = _refused(tmp_path, both, "several members of one modality")
  assert "a.mask.png" in text
  source = _open(tmp_path, both, fields={"image": "mask.png"})
  assert source.record(0).media["image"]() == png(2)


def test_endings_that_differ_in_case_only(tmp_path):
  _refused(tmp_path, [*PAIR, ("a.PNG", png(9))], "differ in case only")


def test_what_systems_leave_behind_is_no_sample(tmp_path, capsys):
  litter = [("._a.png", b"mac"), (".DS_Store", b"mac"),
            ("__MACOSX/._b.png", b"mac"), ("d/._c.txt", b"mac")]  # fmt: skip
  source = _open(tmp_path, [*PAIR, *litter])
  assert [source.record(i).id for i in range(len(source))] == ["a", "b"]
  said = capsys.readouterr().err
  assert "4 members are no part of a sample" in said
  assert "._a.png" in said


def test_links_are_followed_inside_the_archive(tmp_path, capsys):
  hard, soft, lost = (tarfile.TarInfo(f"{k}.png") for k in "cde")
  hard.type, hard.linkname = tarfile.LNKTYPE, "a.png"
  soft.type, soft.linkname = tarfile.SYMTYPE, "c.png"
  lost.type, lost.linkname = tarfile.SYMTYPE, "/etc/hostname"
  source = _open(tmp_path, [*PAIR, (hard, b""), (soft, b""), (lost, b"")])
  found = {
    r.id: r.media["image"]()
    for r in (source.record(i) for i in range(len(source)))
  }
  assert found == {"a": png(1), "b": png(2), "c": png(1), "d": png(1)}
  assert "e.png" in capsys.readouterr().err


def test_archives_that_were_joined_are_refused(tmp_path):
  one = write_tar(tmp_path / "1.tar", PAIR[:2]).read_bytes()
  two = write_tar(tmp_path / "2.tar", PAIR[2:]).read_bytes()
  (tmp_path / "x.tar").write_bytes(one + two)
  with pytest.raises(DecodeError, match="archives joined"):
    TarIndex(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_filled(tmp_path, form):
  if shutil.which("tar") is None:
    pytest.skip("needs GNU tar")
  want = bytearray(3 << 20)
  with open(tmp_path / "a.bin", "wb") as file:
    for place in (5, 1 << 20, (3 << 20) - 9):
      file.seek(place)
      file.write(b"123456789"[: len(want) - place])
      want[place : place + 9] = b"123456789"
  (tmp_path / "z.bin").write_bytes(b"behind")
  done = subprocess.run(
    ["tar", "-S", f"--format={form}", "-cf", "x.tar", "a.bin", "z.bin"],
    cwd=tmp_path,
    capture_output=True,
    check=False,
  )
  if done.returncode:
    pytest.skip("needs GNU tar")
  assert (tmp_path / "x.tar").stat().st_size < 1 << 20
  index = TarIndex(str(tmp_path / "x.tar"))
  assert index.read("a.bin") == bytes(want)
  assert index.read("z.bin") == b"behind"


@pytest.mark.parametrize("name", ["a[1]/x.tar", "a,b.tar", "a*b?.tar"])
def test_a_name_that_exists_is_no_pattern(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  write_tar(path, PAIR)
  other = write_tar(tmp_path / "other.tar", [("c.png", png(3))])
  for pattern, count in ((path, 2), (f"{path},{other}", 3), (other, 1)):
    spec = SourceConfig(kind="webdataset", path=str(pattern))
    assert len(open_source(config_of(a=spec), "a")) == count


def test_members_that_are_no_files_are_named(tmp_path, capsys):
  path = tmp_path / "x.tar"
  with tarfile.open(path, "w") as tar:
    for name, kind in (
      ("a.png", tarfile.REGTYPE),
      ("b.png", tarfile.FIFOTYPE),
      ("c.png", b"Q"),
      ("folder", tarfile.DIRTYPE),
    ):
      info = tarfile.TarInfo(name)
      info.type = kind
      tar.addfile(info)
  assert TarIndex(str(path)).dangling == ["b.png", "c.png"]
  spec = SourceConfig(kind="webdataset", path=str(path))
  assert len(open_source(config_of(a=spec), "a")) == 1
  assert "2 members are no part of a sample" in capsys.readouterr().err


@pytest.mark.parametrize("label", [b"1_0", b"0x1", b"7.0", b""])
def test_labels_are_whole_numbers(tmp_path, label):
  source = _open(tmp_path, [("a.png", png(1)), ("a.cls", label)])
  with pytest.raises(DecodeError, match="expected an integer"):
    source.record(0)


def test_texts_of_other_systems(tmp_path):
  mark = b"\xef\xbb\xbf"
  source = _open(
    tmp_path,
    [("a.txt", mark + b"one"), ("b.json", mark + b'{"caption": "two"}'),
     ("b.cls", b" 7\r\n")],
  )  # fmt: skip
  assert source.record(0).captions["omni"] == ("one",)
  assert source.record(1).captions["omni"] == ("two",)
  assert source.record(1).fields["label"] == 7
