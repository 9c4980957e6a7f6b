"""Case losses: every loss, its gradients, and steps of the official AdamW."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax import rng
from mico_jax.config import (
  CaptioningConfig,
  Config,
  ContrastiveConfig,
  MatchingConfig,
  ObjectivesConfig,
  OptimizerConfig,
  QuestionAnsweringConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.interop.names import mico as official
from mico_jax.modalities import letters
from mico_jax.models import MiCo
from mico_jax.objectives import compute, select
from mico_jax.objectives.matching import mining_weights
from mico_jax.testing.golden.case import (
  LOSS_LIMIT,
  WEIGHT_LIMIT,
  Check,
  Folder,
)
from mico_jax.testing.golden.model import to_frames, whole_model
from mico_jax.train import encode
from mico_jax.train.optimizer import Optimizer, make_optimizer
from mico_jax.train.step import make_loss

# Name in the stored outputs -> (objective, key of the stored subtasks).
LOSSES = {
  "itc": ("contrastive", "ret"),
  "itm": ("matching", "ret"),
  "cap": ("captioning", "cap"),
  "qa": ("question_answering", "qa"),
}


def run_config(folder: Folder, model: MiCo) -> Config:
  """The config of the stored run, with the original's quirks switched on."""
  stored, run = folder.config, folder.config["run_cfg"]
  objectives = ObjectivesConfig(
    contrastive=ContrastiveConfig(
      label_smoothing=stored["label_smoothing"],
      share_identical_texts=False,
      detach_gathered=True,
    ),
    matching=MatchingConfig(
      weight=stored["model_cfg"]["itm_ratio"], exclude_identical_texts=False
    ),
    captioning=CaptioningConfig(),
    question_answering=QuestionAnsweringConfig(),
  )
  tasks = {
    objective: tuple(stored["subtasks"][key])
    for objective, key in LOSSES.values()
    if stored["subtasks"].get(key)
  }
  base, encoder = run["learning_rate"], run["clip_lr"]
  clip = "clip" in stored["model_cfg"]["vision_encoder_type"]
  return Config(
    model=model.config,
    objectives=objectives,
    tasks={
      "all": TaskConfig(
        batch_size=folder.inputs["input_ids"].shape[0], objectives=tasks
      )
    },
    optimizer=OptimizerConfig(
      name="adamw_mico",
      learning_rate=base,
      b1=run["betas"][0],
      b2=run["betas"][1],
      eps=1e-6,
      weight_decay=run["weight_decay"],
      no_decay=(r"bias$", r"^text/.*norm/scale$"),
      schedule="linear_mico",
      warmup=run["warmup_ratio"],
      clip_norm=0.0,
      lr_multipliers={r"^vision/": encoder / base} if clip else {},
    ),
    train=TrainConfig(steps=run["num_train_steps"]),
  )


def make_batch(folder: Folder, config: Config) -> dict[str, Any]:
  """The stored inputs, masks and negatives as a batch with fixed draws."""
  inputs = {k: jnp.asarray(v) for k, v in folder.inputs.items()}
  rows = inputs["input_ids"].shape[0]
  vision = to_frames(folder.inputs["vision_pixels"])
  groups = config.tasks["all"].objectives
  draws: dict[str, Any] = {
    "matching": {
      g: {
        "context_index": inputs[f"neg_cond_idx.{g}"],
        "text_index": inputs[f"neg_text_idx.{g}"],
      }
      for g in groups.get("matching", ())
    },
    "captioning": {
      g: {"ids": inputs["cap_masked_input_ids"], "labels": inputs["cap_labels"]}
      for g in groups.get("captioning", ())
    },
    "question_answering": {
      g: {
        "ids": inputs["qa_masked_answer_ids"],
        "labels": inputs["qa_answer_labels"],
      }
      for g in groups.get("question_answering", ())
    },
  }
  batch = {
    "row": jnp.arange(rows, dtype=jnp.int32),
    "weight": jnp.ones(rows, jnp.float32),
    "pixels": {
      "video": vision,
      "image": vision,  # the "i" of "tid" is the video's frames there
      "audio": to_frames(folder.inputs["audio_spectrograms"]),
      "depth": to_frames(folder.inputs["depth_pixels"]),
    },
    "inputs": {"subtitle": inputs["subtitle_ids"]},
    "text": {
      g: inputs["input_ids"] for names in groups.values() for g in names
    },
    "draws": draws,
  }
  if "question_ids" in inputs:
    batch |= {
      "question": inputs["question_ids"],
      "answer": inputs["answer_ids"],
    }
  return batch


def tokenizer_info(folder: Folder) -> TokenizerInfo:
  """Special ids of the stored models: those of BERT."""
  bert = folder.config["bert_config_full"]
  size = bert["vocab_size"]
  return TokenizerInfo(
    pad=bert["pad_token_id"],
    cls=101,
    sep=102,
    mask=103,
    vocab_size=size,
    random_range=(106, size),
  )


@dataclasses.dataclass(frozen=True)
class _Run:
  """The stored run, ready to be computed."""

  folder: Folder
  model: MiCo
  config: Config
  batch: Mapping[str, Any]

  def loss(self, params: Any, batch: Any, *names: str) -> Any:
    """Loss and metrics of some objectives; none named: all."""
    task = self.config.tasks["all"]
    chosen = {
      k: v for k, v in task.objectives.items() if not names or k in names
    }
    function = make_loss(
      self.model,
      self.config,
      dataclasses.replace(task, objectives=chosen),
      tokenizer_info(self.folder),
    )
    step = jnp.zeros((), jnp.int32)
    value, (metrics, _) = function(params, batch, step=step, train=False)
    return value, metrics

  @functools.cached_property
  def gradient(self) -> Any:
    """Jitted (params, batch) -> ((total, metrics), gradients)."""
    return jax.jit(jax.value_and_grad(self.loss, has_aux=True))

  def gradient_of(self, objective: str) -> Any:
    """Jitted gradients of one objective."""
    return jax.jit(
      jax.grad(lambda p, b: self.loss(p, b, objective), has_aux=True)
    )

  def terms(self, total: Any, metrics: Any) -> dict[str, np.ndarray]:
    """The stored names of losses -> our values."""
    got = {"total_loss": np.asarray(total)}
    for name, (objective, _) in LOSSES.items():
      weight = getattr(self.config.objectives, objective).weight
      if f"loss/{objective}" in metrics:
        value = compute(metrics[f"loss/{objective}"])
        got[f"loss_{name}"] = np.asarray(weight * value)
    return got


def losses(folder: Folder) -> Iterator[Check]:
  """Every stored loss, similarity, gradient and updated weight."""
  model, params = whole_model(folder)
  config = run_config(folder, model)
  run = _Run(folder, model, config, make_batch(folder, config))
  params = jax.tree.map(jnp.asarray, params)
  (total, metrics), grads = run.gradient(params, run.batch)
  outputs = folder.outputs
  terms = {f"all.{k}": v for k, v in run.terms(total, metrics).items()}
  for name, (objective, key) in LOSSES.items():
    weight = getattr(config.objectives, objective).weight
    for group in folder.config["subtasks"].get(key, ()):
      value = compute(metrics[f"loss/{objective}/{group}"])
      terms[f"loss_{name}.{group}"] = np.asarray(weight * value)
  for name, value in (terms | _features(run, params)).items():
    if name in outputs:
      yield Check(name, value, outputs[name], LOSS_LIMIT)
  yield from _gradients(run, grads, "grads")
  for name, objective in (
    ("grads_itc", "contrastive"),
    ("grads_itm", "matching"),
  ):
    if folder.has(name):
      part, _ = run.gradient_of(objective)(params, run.batch)
      yield from _gradients(run, part, name)
  yield from _optimizer(run, params)


def _features(run: _Run, params: Any) -> dict[str, Any]:
  """Embeddings, similarities and mining weights under their stored names."""
  config, info = run.config, tokenizer_info(run.folder)
  selected = select(config.objectives, config.tasks["all"])

  def compute_all(params: Any, batch: Any) -> dict[str, Any]:
    step = jnp.zeros((), jnp.int32)
    inputs = encode.prepare(
      run.model,
      config,
      params,
      batch,
      encode.make_plan(selected),
      tokenizer=info,
      row_keys=rng.row_keys(0, step, batch["row"]),
      train=False,
    )
    temperature = run.model.temperature(params)
    valid = jnp.ones(batch["row"].shape, bool)
    got: dict[str, Any] = {}
    for group, slot in inputs.text.items():
      name = letters(group)
      if name not in inputs.features:
        continue
      context, text = inputs.features[name], slot.feature
      got |= {f"feat_{name}": context, "feat_t": text}
      got[f"sim_cond2t.{group}"] = context @ text.T / temperature
      got[f"sim_t2cond.{group}"] = text @ context.T / temperature
      for word, query, key in (
        ("cond", text, context),
        ("text", context, text),
      ):
        weights = mining_weights(
          query, key, temperature=temperature, valid=valid
        )
        got[f"neg_weights_for_{word}.{group}"] = weights[0]
    return got

  return jax.jit(compute_all)(params, run.batch)


def _gradients(run: _Run, grads: Any, name: str) -> Iterator[Check]:
  """All gradients; what has none in the original must be zero here."""
  ours = official.to_official(grads, run.config.model, copies=False)
  stored = run.folder.tensors(name)
  for key, value in stored.items():
    yield Check(f"{name}: {key}", ours[key], value, LOSS_LIMIT)
  rest = [np.abs(ours[key]).max() for key in ours if key not in stored]
  worst = np.max(np.asarray(rest, np.float32), initial=0)
  yield Check(f"{name}: all without gradient", worst, np.float32(0), 0.0)


def _optimizer(run: _Run, params: Any) -> Iterator[Check]:
  """Learning rates, losses and weights along the stored updates."""
  config, folder = run.config, run.folder
  optimizer: Optimizer = make_optimizer(
    config.optimizer, params, config.train.steps
  )
  ratios = folder.config["lr_ratio_per_step"]
  rates = [optimizer.schedule(jnp.int32(k)) for k in range(len(ratios))]
  got = np.asarray(rates) / config.optimizer.learning_rate
  yield Check("lr_ratio_per_step", got, np.asarray(ratios), 1e-6)

  update = jax.jit(
    lambda grads, state, params, step: optimizer.update(
      grads, state, params, step=step
    )
  )
  state, outputs = optimizer.init(params), folder.outputs
  last = max(
    int(name.split(".")[1].removeprefix("step"))
    for name in outputs
    if name.startswith("train.step")
  )
  for step in range(last + 1):
    name = f"weights_after_step{step}"
    if folder.has(name):
      ours = official.to_official(params, config.model)
      for key, value in folder.tensors(name).items():
        yield Check(f"{name}: {key}", ours[key], value, WEIGHT_LIMIT)
    (total, metrics), grads = run.gradient(params, run.batch)
    params, state = update(grads, state, params, jnp.int32(step))
    for key, value in run.terms(total, metrics).items():
      key = f"train.step{step}.{key}"
      if key in outputs:
        yield Check(key, value, outputs[key], LOSS_LIMIT)
