"""Tiny stand-ins of benchmarks, in the layout of their official files.

Four samples each; the media of the last one are missing, as in sets whose
videos are links. The first sample has the first caption `says(0)`, its first
question is `asks(0)` and its answer "cube".
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mico_jax.testing import official_classes, tiny_data
from mico_jax.testing.official_files import (
  COUNT,
  SILENT,
  Folder,
  asks,
  gif,
  jpg,
  says,
  video,
)


def _karpathy(f: Folder, name: str, folder: str, ids: bool) -> list[str]:
  names = [f"{folder}_{i:012}.jpg" for i in range(COUNT)]
  images = [
    {
      "filename": names[i],
      "split": split,
      "sentences": [{"raw": says(i, j), "tokens": []} for j in range(6)],
      **({"cocoid": i, "filepath": "val2014"} if ids else {}),
    }
    for split, numbers in (("train", (0,)), ("test", range(COUNT)))
    for i in numbers
  ]
  images[0]["filename"], images[0]["cocoid"] = "other.jpg", 99
  f.json(name, {"images": images, "dataset": "x"})
  where = "val2014" if ids else "flickr30k-images"
  f.media([f"{where}/{n}" for n in names], jpg())
  return [str(i) for i in range(COUNT)] if ids else names


def _coco(f: Folder) -> list[str]:
  return _karpathy(f, "dataset_coco.json", "COCO_val2014", True)


def _flickr(f: Folder) -> list[str]:
  return _karpathy(f, "dataset_flickr30k.json", "x", False)


def _msrvtt_1ka(f: Folder) -> list[str]:
  ids = [f"video{7010 + i}" for i in range(COUNT)]
  rows = [
    {"key": f"ret{i}", "vid_key": f"msr{i}", "video_id": x, "sentence": says(i)}
    for i, x in enumerate(ids)
  ]
  f.csv("MSRVTT_JSFUSION_test.csv", rows)
  f.media([f"videos/all/{x}.mp4" for x in ids], video())
  f.put(f"videos/all/{ids[SILENT]}.mp4", video(sound=False))
  return ids


def _msrvtt(f: Folder) -> list[str]:
  ids = [f"video{7010 + i}" for i in range(COUNT)]
  videos = [{"video_id": x, "split": "test"} for x in ids]
  sentences = [
    {"video_id": x, "caption": says(i, j), "sen_id": 9 * i + j}
    for j in range(3)
    for i, x in enumerate(ids)
  ]
  other = {"video_id": "video0", "split": "train"}
  f.json(
    "MSRVTT_data.json", {"videos": [other, *videos], "sentences": sentences}
  )
  f.media([f"videos/all/{x}.mp4" for x in ids], video())
  return ids


def _vatex(f: Folder, name: str) -> list[str]:
  ids = [f"-a{i}_b_000001_000011" for i in range(COUNT)]
  listed = [*ids, "not_of_the_split_000001_000011"]
  f.json(
    name,
    [
      {"videoID": x, "enCap": [says(i % COUNT, j) for j in range(10)]}
      for i, x in enumerate(listed)
    ][: COUNT + ("validation" in name)],
  )
  f.media([f"val/{x}.mp4" for x in ids], video())
  return ids


def _vatex_hgr(f: Folder) -> list[str]:
  ids = _vatex(f, "vatex_validation_v1.0.json")
  out = io.BytesIO()
  np.save(out, np.asarray(ids))
  f.put("tst_names.npy", out.getvalue())
  return ids


def _vatex_public(f: Folder) -> list[str]:
  return _vatex(f, "vatex_public_test_english_v1.1.json")


def _didemo(f: Folder) -> list[str]:
  ids = [f"1209@N02_13_{i}.mov" for i in range(COUNT)]
  rows = [
    {"video": x, "description": says(i, j), "times": [[0, 0]]}
    for j in range(2)
    for i, x in enumerate(ids)
  ]
  f.json("test_data.json", rows)
  f.media([f"videos/{x.removesuffix('.mov')}.mp4" for x in ids], video())
  return ids


def _activitynet(f: Folder) -> list[str]:
  ids = [f"v_{i}abc" for i in range(COUNT)]
  f.json(
    "val_1.json",
    {
      x: {"duration": 9.5, "timestamps": [], "sentences": [says(i), " b. "]}
      for i, x in enumerate(ids)
    },
  )
  f.media([f"videos/{x}.mp4" for x in ids], video())
  return ids


def _youcook2(f: Folder) -> list[str]:
  ids = [f"v{i // 2}_{i % 2}" for i in range(COUNT)]
  database: dict[str, Any] = {
    f"v{v}": {
      "subset": "validation",
      "annotations": [
        {"segment": [0, 1], "id": j, "sentence": says(2 * v + j)}
        for j in range(2)
      ],
    }
    for v in range(2)
  }
  database["t"] = {"subset": "training", "annotations": [{"id": 0}]}
  f.json("youcookii_annotations_trainval.json", {"database": database})
  f.media([f"clips/{x}.mp4" for x in ids], video())
  return ids


def _valor(f: Folder) -> list[str]:
  ids = [f"x{i}_10.000_20.000" for i in range(COUNT)]
  f.json(
    "desc_test.json",
    [{"video_id": x, "desc": says(i)} for i, x in enumerate(ids)],
  )
  f.media([f"videos/{x}.mp4" for x in ids], video())
  return ids


def _lsmdc(f: Folder) -> list[str]:
  ids = [f"10_Juno_00.0{i}.32.166-00.00.37.254" for i in range(COUNT)]
  lines = [
    "\t".join([x, "a", "b", "c", "d", says(i) + ' "open'])
    for i, x in enumerate(ids)
  ]
  f.put("LSMDC16_challenge_1000_publictect.csv", "\n".join(lines) + "\n")
  f.media([f"10_Juno/{x}.avi" for x in ids], video())
  return ids


def _audiocaps(f: Folder) -> list[str]:
  ids = [f"-y{i}" for i in range(COUNT)]
  rows = [
    {
      "audiocap_id": 10 * i + j,
      "youtube_id": x,
      "start_time": 30,
      "caption": says(i, j) + ", loudly",
    }
    for j in range(5)
    for i, x in enumerate(ids)
  ]
  f.csv("test.csv", rows)
  f.put("test_816.txt", "\n".join(ids) + "\n")
  names = [f"test/{ids[0]}.wav", f"test/Y{ids[1]}.wav"]
  names += [f"test/{x}_30.wav" for x in ids[2:]]
  f.media(names, tiny_data.wav())
  return ids


def _clotho(f: Folder) -> list[str]:
  ids = [f"rain, on {i} roofs.wav" for i in range(COUNT)]
  rows = [
    {"file_name": x, **{f"caption_{j + 1}": says(i, j) for j in range(5)}}
    for i, x in enumerate(ids)
  ]
  f.csv("clotho_captions_evaluation.csv", rows)
  f.media([f"evaluation/{x}" for x in ids], tiny_data.wav())
  return ids


# ------------------------------------------------------------------- questions
def _pairs(ids: Sequence[Any], name: str) -> list[dict[str, Any]]:
  """Two questions of each."""
  return [
    {name: x, "question": asks(j), "answer": "cube", "question_id": f"{x}_{j}"}
    for j in range(2)
    for x in ids
  ]


def _msvd_qa(f: Folder) -> list[str]:
  numbers = range(1201, 1201 + COUNT)
  f.json("test_qa.json", _pairs(numbers, "video_id"))
  lines = [f"-4w{n}_5_15 vid{n}" for n in (1, *numbers)]
  f.put("youtube_mapping.txt", "\n".join(lines) + "\n")
  f.media([f"YouTubeClips/-4w{n}_5_15.avi" for n in numbers], video())
  return [str(n) for n in numbers]


def _msrvtt_qa(f: Folder) -> list[str]:
  numbers = range(7010, 7010 + COUNT)
  f.json("test_qa.json", _pairs(numbers, "video_id"))
  f.media([f"TestVideo/video{n}.mp4" for n in numbers], video())
  return [str(n) for n in numbers]


def _activitynet_qa(f: Folder) -> list[str]:
  ids = [f"1Qb{i}" for i in range(COUNT)]
  pairs = _pairs(ids, "video_name")
  names = ("video_name", "question", "question_id")
  f.json("test_q.json", [{k: p[k] for k in names} for p in pairs])
  names = ("answer", "question_id")
  answers = [{**{k: p[k] for k in names}, "type": 3} for p in pairs]
  f.json("test_a.json", answers[::-1])
  f.media([f"videos/v_{x}.mp4" for x in ids], video())
  return ids


def _tgif(f: Folder) -> list[str]:
  ids = [f"tumblr_{i}" for i in range(COUNT)]
  lines = ["gif_name\tquestion\tanswer\ttype"]
  lines += [f"{p['g']}\t{p['question']}\tcube\t1" for p in _pairs(ids, "g")]
  f.put("Test_frameqa_question.csv", "\n".join(lines) + "\n")
  f.media([f"gifs/{x}.gif" for x in ids], gif())
  return ids


def _music(f: Folder) -> list[str]:
  ids = [f"0000{i}" for i in range(COUNT)]
  rows = [
    {
      "video_id": p["video_id"],
      "question_content": "what is <Object> 0?" if j < COUNT else asks(1),
      "templ_values": '["small"]' if j < COUNT else "[]",
      "anser": "cube",
    }
    for j, p in enumerate(_pairs(ids, "video_id"))
  ]
  f.json("avqa-test.json", rows)
  f.media([f"videos/{x}.mp4" for x in ids], video())
  return ids


def _vqa(f: Folder) -> list[str]:
  pairs = _pairs(range(COUNT), "image_id")
  names = ("image_id", "question", "question_id")
  questions = [{k: p[k] for k in names} for p in pairs]
  f.json("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
  annotations = [
    {
      "question_id": p["question_id"],
      "multiple_choice_answer": "cube",
      "answers": [
        {"answer": "cube" if n < 7 else "a ball", "answer_id": n + 1}
        for n in range(10)
      ],
    }
    for p in pairs
  ]
  f.json("v2_mscoco_val2014_annotations.json", {"annotations": annotations})
  names = [f"val2014/COCO_val2014_{i:012}.jpg" for i in range(COUNT)]
  f.media(names, jpg())
  return [str(i) for i in range(COUNT)]


# Protocol -> writes its stand-in into a folder, and gives its samples' ids.
COPIES: dict[str, Callable[[Folder], list[str]]] = {
  "coco_retrieval": _coco,
  "coco_captioning": _coco,
  "flickr30k_retrieval": _flickr,
  "flickr30k_captioning": _flickr,
  "msrvtt_1ka": _msrvtt_1ka,
  "msrvtt_captioning": _msrvtt,
  "vatex_retrieval": _vatex_hgr,
  "vatex_captioning": _vatex_public,
  "didemo": _didemo,
  "activitynet_retrieval": _activitynet,
  "youcook2_retrieval": _youcook2,
  "youcook2_captioning": _youcook2,
  "valor32k_retrieval": _valor,
  "valor32k_captioning": _valor,
  "lsmdc": _lsmdc,
  "audiocaps_975": _audiocaps,
  "audiocaps_816": _audiocaps,
  "audiocaps_captioning": _audiocaps,
  "clotho_v1_retrieval": _clotho,
  "clotho_v1_captioning": _clotho,
  "clotho_v2_retrieval": _clotho,
  "clotho_v2_captioning": _clotho,
  "msvd_qa": _msvd_qa,
  "msrvtt_qa": _msrvtt_qa,
  "activitynet_qa": _activitynet_qa,
  "tgif_frame": _tgif,
  "music_avqa": _music,
  "vqav2": _vqa,
  "imagenet_1k": official_classes.folders("val", official_classes.WNIDS),
  "imagenet_v2": official_classes.folders(
    "imagenetv2-matched-frequency-format-val", "0123"
  ),
  "imagenet_a": official_classes.folders(
    "imagenet-a", official_classes.WNIDS[1:3]
  ),
  "imagenet_r": official_classes.folders(
    "imagenet-r", official_classes.WNIDS[1:3]
  ),
  "imagenet_sketch": official_classes.folders("sketch", official_classes.WNIDS),
  "esc50": official_classes.esc50,
  "audioset": official_classes.audioset,
  "kinetics700": official_classes.kinetics,
  "nyu_d_scenes": official_classes.nyu,
  "sun_d_scenes": official_classes.sun,
}
# Protocols whose samples are the files, so that none can be seen to be missing.
BY_FILES = tuple(name for name in COPIES if name.startswith("imagenet"))


def write_copy(name: str, root: pathlib.Path) -> list[str]:
  """Writes the stand-in of a protocol; returns the ids of its samples."""
  root.mkdir(parents=True, exist_ok=True)
  return COPIES[name](Folder(root))
