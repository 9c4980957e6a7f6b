"""Captioners and estimators of `transformers`, real ones of a few kilobytes.

Needs the extra `clients`; skipped where `transformers` 5 is not installed.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import Config, ConfigError, DataConfig
from mico_jax.data import build
from mico_jax.data.build import hf
from mico_jax.data.build.inputs import VideosInput
from mico_jax.data.build.job import Job
from mico_jax.data.sources import open_source
from mico_jax.modalities import MODALITIES, Geometry
from mico_jax.testing import raw_videos

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of its own
]

T = transformers
WORDS = [
  "a",
  "dog",
  "on",
  "the",
  "beach",
  "runs",
  "red",
  "cube",
  "rain",
  "what",
]
SPECIAL = ("<pad>", "<end>", "<unk>", "<image>", "<sound>")
CHAT = (
  "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }} "
  "{% else %}{% for c in m['content'] %}"
  "{% if c['type'] == 'text' %} {{ c['text'] }}{% else %} <{{ "
  "'image' if c['type'] == 'image' else 'sound' }}>{% endif %}{% endfor %}"
  "{% endif %}{% endfor %} rain"
)
SMALL = {
  "hidden_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": 16,
}
SEES = {**SMALL, "image_size": 32, "patch_size": 16}
ENDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
SIDES = {"height": 32, "width": 32}
ANYTHING = {"max_position_embeddings": 2048, **ENDS}


def words(chat=None):
  """A tokenizer of whole words."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  vocab = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
  plain = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return T.PreTrainedTokenizerFast(
    tokenizer_object=plain,
    unk_token="<unk>",
    pad_token="<pad>",
    eos_token="<end>",
    additional_special_tokens=["<image>", "<sound>"],
    chat_template=chat,
  )


def save(path, model, *others):
  for part in (model, *others):
    part.save_pretrained(path)
  return str(path)


def llama(path, chat=None):
  config = T.LlamaConfig(vocab_size=len(words()), **SMALL, **ANYTHING)
  return save(path, T.LlamaForCausalLM(config), words(chat))


def vit_gpt2(path):
  writes = T.GPT2Config(
    vocab_size=len(words()), n_embd=16, n_layer=1, n_head=2, **ENDS
  )
  config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
    T.ViTConfig(**SEES), writes
  )
  config.decoder_start_token_id, config.pad_token_id = 1, 0
  model = T.VisionEncoderDecoderModel(config)
  model.generation_config.decoder_start_token_id = 1
  model.generation_config.pad_token_id = 0
  return save(path, model, words(), T.ViTImageProcessor(size=SIDES))


def bert_words(path):
  path.mkdir()
  tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
  (path / "vocab.txt").write_text("\n".join(tokens))
  return T.BertTokenizerFast(vocab=str(path / "vocab.txt"))


def blip(path):
  tokens = bert_words(path)
  text = {**SMALL, "vocab_size": len(tokens), "encoder_hidden_size": 16}
  text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
  config = T.BlipConfig(text_config=text, vision_config=SEES)
  process = T.BlipProcessor(T.BlipImageProcessor(size=SIDES), tokens)
  return save(path, T.BlipForConditionalGeneration(config), process)


def git(path):
  tokens = bert_words(path)
  config = T.GitConfig(
    vision_config=SEES, vocab_size=len(tokens), **SMALL,
    bos_token_id=2, eos_token_id=3, pad_token_id=0,
  )  # fmt: skip
  see = T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES)
  return save(path, T.GitForCausalLM(config), T.GitProcessor(see, tokens))


def llava(path):
  tokens = words(CHAT)
  config = T.LlavaConfig(
    vision_config=T.CLIPVisionConfig(**SEES | {"num_hidden_layers": 2}),
    text_config=T.LlamaConfig(vocab_size=len(tokens), **SMALL, **ANYTHING),
    image_token_index=tokens.convert_tokens_to_ids("<image>"),
  )
  process = T.LlavaProcessor(
    T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES),
    tokens,
    patch_size=16,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    chat_template=CHAT,
  )
  return save(path, T.LlavaForConditionalGeneration(config), process)


HEARS = {
  "d_model": 16,
  "encoder_layers": 1,
  "encoder_attention_heads": 2,
  "encoder_ffn_dim": 16,
}


def qwen_audio(path):
  tokens = words(CHAT)
  config = T.Qwen2AudioConfig(
    audio_config={**HEARS, "num_mel_bins": 80},
    text_config={
      "model_type": "qwen2", "vocab_size": len(tokens), **SMALL, **ANYTHING,
      "num_key_value_heads": 2,
    },
    audio_token_index=tokens.convert_tokens_to_ids("<sound>"),
  )  # fmt: skip
  process = T.Qwen2AudioProcessor(
    T.WhisperFeatureExtractor(),
    tokens,
    chat_template=CHAT,
    audio_token="<sound>",
    audio_bos_token="a",
    audio_eos_token="a",
  )
  return save(path, T.Qwen2AudioForConditionalGeneration(config), process)


def whisper(path):
  from tokenizers.pre_tokenizers import ByteLevel

  vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
  tokens = T.WhisperTokenizer(vocab={**vocab, "<|endoftext|>": 256}, merges=[])
  tokens.add_special_tokens(
    {"additional_special_tokens": ["<|startoftranscript|>"]}
  )
  config = T.WhisperConfig(
    vocab_size=len(tokens), **HEARS, num_mel_bins=80, decoder_layers=1,
    decoder_attention_heads=2, decoder_ffn_dim=16, bos_token_id=256,
    eos_token_id=256, pad_token_id=256, decoder_start_token_id=257,
    suppress_tokens=None, begin_suppress_tokens=None,
  )  # fmt: skip
  model = T.WhisperForConditionalGeneration(config)
  return save(path, model, tokens, T.WhisperFeatureExtractor())


DENSE = {
  "neck_hidden_sizes": [8] * 4,
  "fusion_hidden_size": 8,
}


def depth_anything(path, kind="relative"):
  stages = [f"stage{i}" for i in range(1, 5)]
  back = T.Dinov2Config(
    hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=1,
    image_size=28, patch_size=14, out_features=stages,
    reshape_hidden_states=False,
  )  # fmt: skip
  config = T.DepthAnythingConfig(
    backbone_config=back, reassemble_hidden_size=16, patch_size=14,
    head_hidden_size=8, depth_estimation_type=kind, **DENSE,
  )  # fmt: skip
  process = T.DPTImageProcessor(
    size={"height": 56, "width": 56},
    keep_aspect_ratio=True,
    ensure_multiple_of=14,
  )
  return save(path, T.DepthAnythingForDepthEstimation(config), process)


def dpt(path):
  config = T.DPTConfig(
    **SEES | {"num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3],
    is_hybrid=False, **DENSE,
  )  # fmt: skip
  return save(
    path, T.DPTForDepthEstimation(config), T.DPTImageProcessor(size=SIDES)
  )


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  torch.manual_seed(0)


RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(3)]
SOUNDS = [
  (RNG.normal(0, 0.1, 4000 * n).astype(np.float32), 16000) for n in (1, 3, 2)
]
TEXTS = ["a dog runs", "rain", "the red cube on the beach"]
ASK = {"prompt": "what runs"}


@pytest.mark.parametrize(
  ("make", "task", "items", "more"),
  [
    (vit_gpt2, "image-to-text", PICTURES, {}),
    (blip, "image-to-text", PICTURES, {}),
    (git, "image-to-text", PICTURES, {}),
    (llava, "image-text-to-text", PICTURES, ASK),
    (whisper, "automatic-speech-recognition", SOUNDS, {}),
    (qwen_audio, "audio-text-to-text", SOUNDS, ASK),
    (llama, "text-generation", TEXTS, {}),
  ],
)
def test_a_batch_writes_what_each_alone_would(
  tmp_path, make, task, items, more
):
  options = {"task": task, "max_new_tokens": 5, **more}
  write = hf.load_pipeline(make(tmp_path / "m"), options)
  together = list(write(items))
  assert together == [write([item])[0] for item in items]
  assert all(isinstance(text, str) for text in together)
  assert not any("<" in text for text in together)


def greedy(model, ids, count, **more):
  """Words by the definition: the likeliest next one, again and again."""
  ids, begin = torch.tensor([ids]), len(ids)
  for _ in range(count):
    key = "decoder_input_ids" if "pixel_values" in more else "input_ids"
    with torch.no_grad():
      logits = model(**{key: ids}, **more).logits
    ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    if ids[0, -1] == 1:
      break
  return words().decode(ids[0, begin:], skip_special_tokens=True)


def test_texts_are_the_likeliest_ones(tmp_path):
  options = {"task": "text-generation", "max_new_tokens": 5}
  plain, chats = llama(tmp_path / "plain"), llama(tmp_path / "chat", CHAT)
  for path, after in ((plain, ""), (chats, " rain")):
    model = T.LlamaForCausalLM.from_pretrained(path)
    wanted = [
      greedy(model, words()(text + after)["input_ids"], 5) for text in TEXTS
    ]
    assert hf.load_pipeline(path, options)(TEXTS) == wanted
  path = vit_gpt2(tmp_path / "sees")
  model = T.VisionEncoderDecoderModel.from_pretrained(path)
  process = T.ViTImageProcessor.from_pretrained(path)
  pixels = [
    process(Image.fromarray(x), return_tensors="pt").pixel_values
    for x in PICTURES
  ]
  wanted = [greedy(model, [1], 5, pixel_values=x) for x in pixels]
  options["task"] = "image-to-text"
  assert hf.load_pipeline(path, options)(PICTURES) == wanted


@pytest.mark.parametrize("make", [depth_anything, dpt])
def test_depth_is_that_of_the_model_at_the_size_of_the_picture(tmp_path, make):
  path = make(tmp_path / "m")
  options = {"task": "depth-estimation", "values": "inverse"}
  pictures = [*PICTURES, PICTURES[0][:32]]
  maps = hf.load_pipeline(path, options)(pictures)
  process = T.AutoImageProcessor.from_pretrained(path)
  model = T.AutoModelForDepthEstimation.from_pretrained(path)
  for picture, found in zip(pictures, maps, strict=True):
    inputs = process(Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
      small = model(**inputs).predicted_depth[None]
    wanted = torch.nn.functional.interpolate(
      small, picture.shape[:2], mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(found, wanted[0, 0], rtol=1e-3, atol=1e-5)
  with pytest.raises(ConfigError, match=r"--set depth\.values=inverse"):
    hf.load_pipeline(path, {**options, "values": "metre"})


def test_models_that_are_not_what_is_said(tmp_path):
  metric = depth_anything(tmp_path / "metric", "metric")
  with pytest.raises(ConfigError, match=r"--set depth\.values=metre"):
    hf.load_pipeline(metric, {"task": "depth-estimation", "values": "inverse"})
  with pytest.raises(ConfigError, match="no chat template"):
    hf.load_pipeline(
      blip(tmp_path / "b"), {"task": "image-text-to-text", **ASK}
    )


def test_a_build_by_models_of_every_kind(tmp_path):
  raw_videos.write_videos(tmp_path / "raw", 2, 1.0)
  depth = depth_anything(tmp_path / "depth")
  options = {
    "vision_captions": {"model": f"hf:{llava(tmp_path / 'v')}", **ASK,
                        "task": "image-text-to-text", "max_new_tokens": 4},
    "audio_captions": {"model": f"hf:{qwen_audio(tmp_path / 'a')}", **ASK,
                       "task": "audio-text-to-text", "max_new_tokens": 4},
    "omni": {"model": f"hf:{llama(tmp_path / 'o', CHAT)}",
             "max_new_tokens": 4},
    "depth": {"model": f"hf:{depth}", "values": "inverse"},
  }  # fmt: skip
  stages = ("frames", *options)
  shards = []
  for name in ("one", "two"):
    raw = VideosInput(str(tmp_path / "raw"))
    report = build.run(
      Job(raw, str(tmp_path / name), stages, options, shards=1)
    )
    shards.append(tmp_path / name / "all-00000-of-00001.array_record")
  assert shards[0].read_bytes() == shards[1].read_bytes()
  source = open_source(
    Config(data=DataConfig(sources={"a": report.source})), "a"
  )
  for i in range(2):
    record = source.record(i)
    assert set(record.captions) == {"vision", "audio", "omni"}
    assert record.fields["captioners"]["omni_caption"].startswith("hf:")
    how = record.fields["estimators"]["depth"]
    assert (how["values"], how["normalisation"], how["model"]) == (
      "inverse", "range of the clip", f"hf:{depth}",
    )  # fmt: skip
    geometry = Geometry(frames=1, size=32, unit="relative")
    clip = MODALITIES["depth"].decode(record.media["depth"](), geometry)
    frame = next(
      f for t, f in raw_frames(tmp_path / "raw" / f"v00{i}.mp4") if t >= 0.49
    )
    options = {"task": "depth-estimation", "values": "inverse"}
    (near,) = hf.load_pipeline(depth, options)([frame])
    wanted = (near.max() - near) / (near.max() - near.min())
    np.testing.assert_allclose(clip.take([0])[0], wanted, atol=2e-3)
    np.testing.assert_allclose(
      (how["low"], how["high"]), (near.min(), near.max()), rtol=1e-3
    )


def raw_frames(path):
  from mico_jax.data.build.raw import Raw

  return Raw("x", path.read_bytes, key="video").video.between(0.0, 1.0)


def test_a_folder_that_is_no_model(tmp_path):
  (tmp_path / "m").mkdir()
  (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "x"}))
  raw_videos.write_videos(tmp_path / "raw", 1, 1.0)
  options = {"model": f"hf:{tmp_path / 'm'}", "values": "metre"}
  job = Job(
    VideosInput(str(tmp_path / "raw")),
    str(tmp_path / "out"),
    ("depth",),
    {"depth": options},
  )
  with pytest.raises(ConfigError, match=r"hf:.*ValueError"):
    build.run(job)
