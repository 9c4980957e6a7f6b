"""Sound and video as users hand them in: embed, score, manifests, tar."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

import mico_jax
from mico_jax.cli.main import main
from mico_jax.config import SourceConfig
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.testing import tiny_checkpoint
from mico_jax.testing.media import file_of, greys, tone
from mico_jax.testing.tiny_data import config_of, manifest_source


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp("doors")
  tiny_checkpoint.save_tiny(root / "run")
  return mico_jax.load(str(root / "run")), root


def _clip(level=10, sound=True, **options):
  frames = greys(level * i for i in range(20))
  wave = tone(2.0, 16000, 300 + 20 * level) if sound else None
  return file_of("mp4", frames, wave, codec="libx264", **options)


def test_sound_inside_a_video_embeds_as_the_sound(model):
  model, root = model
  (root / "clip.mp4").write_bytes(_clip(sound_codec="flac"))
  (root / "same.flac").write_bytes(
    file_of("flac", sound=tone(2.0, 16000, 500), sound_codec="flac")
  )
  inside = model.embed(audio=[str(root / "clip.mp4")])["audio"]
  alone = model.embed(audio=[str(root / "same.flac")])["audio"]
  np.testing.assert_allclose(inside, alone, atol=1e-5)
  joint = model.embed(
    groups="va", video=[str(root / "clip.mp4")], audio=[str(root / "clip.mp4")]
  )["va"]
  assert joint.shape == (1, model.embed_dim)


def test_a_turned_video_embeds_as_the_upright_one(model):
  import av

  model, _ = model
  picture = np.zeros((32, 48, 3), np.uint8)
  picture[:16, :24], picture[16:, 24:] = 200, 90
  turned = np.ascontiguousarray(np.rot90(picture))

  def mark(stream):
    if hasattr(stream, "set_display_rotation"):
      stream.set_display_rotation(-90)

  options = {"codec": "libx264", "codec_options": {"qp": "0"}}
  upright = file_of("mp4", [picture] * 6, **options)
  phone = file_of("mp4", [turned] * 6, prepare=mark, **options)
  with av.open(io.BytesIO(phone)) as container:
    if not next(container.decode(video=0)).rotation:
      pytest.skip("this PyAV writes no display matrix")
  a, b = model.embed(video=[upright, phone])["video"]
  np.testing.assert_allclose(a, b, atol=1e-3)


def test_score_takes_the_sound_of_a_video(model, capsys):
  model, root = model
  (root / "clip.mp4").write_bytes(_clip())
  (root / "sound.m4a").write_bytes(file_of("ipod", sound=tone(2.0)))
  status = main([
    "score", "--checkpoint", str(root / "run"), "--check", "off", "--json",
    "--text", "a red cube",
    f"audio:{root / 'clip.mp4'}", str(root / "sound.m4a"),
    str(root / "clip.mp4"),
  ])  # fmt: skip
  found = capsys.readouterr()
  assert status == 0, found.err
  assert "NaN" not in found.out


def test_values_that_are_no_sound_are_refused_in_one_line(model):
  model, root = model
  wave = np.full(16000, 1e30, np.float32)
  (root / "huge.wav").write_bytes(
    file_of("wav", sound=wave, sound_codec="pcm_f32le")
  )
  with pytest.raises(DecodeError, match=r"huge\.wav: .*full scale"):
    model.embed(audio=[str(root / "huge.wav")])
  with pytest.raises(DecodeError, match="uint8"):
    model.embed(audio=[np.zeros(16000, np.uint8)])


def _batches(config, workdir=""):
  tokenizer = make_tokenizer(config.data.tokenizer)
  return [
    batch
    for _, _, batch in Pipeline(config, tokenizer, end_step=2, workdir=workdir)
  ]


def test_a_manifest_names_one_file_for_both(tmp_path):
  lines = []
  for i in range(8):
    (tmp_path / f"{i}.mp4").write_bytes(_clip(3 + i, sound_start=0.3))
    record = {"id": f"r{i}", "video": f"{i}.mp4", "audio": f"{i}.mp4"}
    lines.append(json.dumps({**record, "caption": f"a small cube {i}"}))
  (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n")
  config = config_of(
    groups=("tva",), set=manifest_source(tmp_path / "set.jsonl")
  )
  for batch in _batches(config, tmp_path / "work"):
    for key in ("video", "audio"):
      assert np.asarray(batch["present"][key]).all()
      assert np.abs(batch["inputs"][key].astype(np.float32)).max() > 1
  assert not list(read_bad_samples(str(tmp_path / "work")))


def test_a_tar_member_serves_both(tmp_path):
  with tarfile.open(tmp_path / "shard.tar", "w") as tar:
    for i in range(4):
      for name, data in (
        (f"{i}.mp4", _clip(3 + i)),
        (f"{i}.txt", f"a small cube {i}".encode()),
      ):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  source = SourceConfig(
    kind="webdataset",
    path=str(tmp_path / "shard.tar"),
    fields={"video": "mp4", "audio": "mp4"},
  )
  for batch in _batches(config_of(groups=("tva",), shard=source)):
    assert np.asarray(batch["present"]["audio"]).all()
    assert np.asarray(batch["present"]["video"]).all()
