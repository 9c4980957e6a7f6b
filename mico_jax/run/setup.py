"""Makes everything that a run needs from its config, host work first.

`resolve` touches only the host: it opens the sources, pins their counts and
hashes into the config, makes the tokenizer and checks that all parts fit.
`Session` then builds model, mesh and optimizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from mico_jax import models
from mico_jax.checkpoint.described import Extras, topology
from mico_jax.config import Config, ConfigError, Stage, stages_of
from mico_jax.data.input_checks import check_inputs
from mico_jax.data.language import check_lengths
from mico_jax.data.native_modes import pin_modes
from mico_jax.data.order import Order
from mico_jax.data.samples import TextSlots, groups_of, input_shape, keys_of
from mico_jax.data.sources import Source, open_sources, pin_sources
from mico_jax.data.targets import pin_targets
from mico_jax.data.text_classes import order_of, text_classes
from mico_jax.data.text_lengths import Classes
from mico_jax.data.tokenizer import Tokenizer, make_tokenizer
from mico_jax.data.usable import tell_groups
from mico_jax.evaluation import check_evaluation
from mico_jax.inference.prepare import Preparer
from mico_jax.inference.self_check import SMALL, make_self_check
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  has_text,
  letters,
  preprocessing,
  sides,
)
from mico_jax.objectives import OBJECTIVES, make_objective, select
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run.checks import (
  check_encoder,
  check_mesh,
  check_values,
  lower_is_better,
)
from mico_jax.run.monitor.progress import say
from mico_jax.train.encode import make_plan
from mico_jax.train.optimizer import Optimizer, make_optimizer
from mico_jax.train.state import abstract_params, logical_axes
from mico_jax.train.step import make_loss


def training_captions(
  config: Config, sources: Mapping[str, Source]
) -> Iterator[str]:
  """Every caption, question and answer of the sources that tasks train on."""
  names = {
    name
    for stage in stages_of(config)
    for task in stage.config.tasks.values()
    for name in task.sources
  }
  for name in sorted(names & set(sources)):
    for index in range(len(sources[name])):
      try:
        record = sources[name].record(index)
      except DecodeError:
        continue  # skipped and counted when a batch asks for it
      for kind in record.captions:
        try:
          yield from record.captions[kind]
        except DecodeError:
          continue
      for question in record.questions:
        yield from question[:2]


def _with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
  """The config with the text tower's vocabulary and pad id of a tokenizer."""
  info, text = tokenizer.info, config.model.text
  if text.vocab_size and text.vocab_size < info.vocab_size:
    raise ConfigError(
      f"model.text.vocab_size={text.vocab_size} is smaller than the "
      f"tokenizer's {info.vocab_size}; set it to that, or to 0 to take it."
    )
  text = dataclasses.replace(
    text, vocab_size=text.vocab_size or info.vocab_size, pad_id=info.pad
  )
  return dataclasses.replace(
    config, model=dataclasses.replace(config.model, text=text)
  )


def check_tasks(config: Config) -> None:
  """Checks that the model has heads, types and positions for every task.

  Raises:
    ConfigError: naming the task and the group.
  """
  if not config.tasks:
    raise ConfigError("the config has no tasks; set config.tasks.")
  check_lengths(config)
  model = models.build(config.model)
  for name, task in config.tasks.items():
    # Matching mines its negatives by similarity, so it needs heads as well.
    compared = make_plan(select(config.objectives, task)).features
    for group in groups_of(task):
      try:
        if has_text(group):
          for letter in letters(group):
            model.context_type(letter)
        pair = has_text(group) or len(letters(group)) == 2 or ":" in group
        for side in sides(group) if pair else ():
          if side in compared:
            model.head(side)
      except ValueError as error:
        raise ConfigError(f"tasks.{name}: group {group!r}: {error}") from None
    _check_heads(config, name, model)
    for group in task.texts:
      try:
        letters(group)
        if not has_text(group):
          raise ValueError(f"group {group!r} has no text side 't'.")
        if group not in groups_of(task):
          raise ValueError(
            f"{group!r} is no group of its objectives, so that nothing reads "
            f"it; groups: {', '.join(groups_of(task))}."
          )
      except ValueError as error:
        raise ConfigError(f"tasks.{name}.texts: {error}") from None
    _check_lengths(config, name)
  if model.tower.next_token:
    _check_masking(config)


def _check_heads(config: Config, name: str, model: models.MiCo) -> None:
  """Checks the contexts that a task embeds, and the modes of its objectives."""
  task = config.tasks[name]
  selected = select(config.objectives, task)
  for context in make_plan(selected).features:
    try:
      model.head(context)
    except ValueError as error:
      raise ConfigError(f"tasks.{name}: {error}") from None
  for objective, groups in selected.values():
    for group in groups:
      for train in (True, False):
        modes = {
          key: preprocessing.mode_of(config, key, train=train)
          for key in keys_of((group,))
          if MODALITIES[key].kind == "knowledge"
        }
        objective.check_modes(group, modes)


def _check_masking(config: Config) -> None:
  """Refuses masking options, as the text tower predicts the next token."""
  for name in OBJECTIVES:
    objective = make_objective(config.objectives, name)
    defaults = type(objective.config)()
    for option in objective.masking_options:
      value, default = (
        getattr(options, option) for options in (objective.config, defaults)
      )
      if value != default:
        raise ConfigError(
          f"objectives: {name}.{option}={value} has no effect with "
          f"model.text.encoder={config.model.text.encoder!r}, which masks no "
          f"token; leave it at {default}."
        )


def _check_lengths(config: Config, name: str) -> None:
  """Checks that the texts of a task fit the tower's position table."""
  task, limit = config.tasks[name], config.model.text.max_positions
  slots = TextSlots.of(config, task)
  lengths = {f"the text of {g!r}": n for g, n in slots.groups.items()}
  lengths["question and answer together"] = slots.question + slots.answer
  for modality in keys_of(groups_of(task)):
    if MODALITIES[modality].kind == "interface":
      (lengths[f"a {modality}"],) = input_shape(config, modality).shape
  for what, length in lengths.items():
    if length > limit:
      raise ConfigError(
        f"tasks.{name}: {what} may take {length} tokens, but "
        f"model.text.max_positions={limit}; lower data.tokenizer.max_length or "
        "raise max_positions."
      )


@dataclass(frozen=True)
class Session:
  """The parts of a run.

  Attributes:
    config: resolved: sources pinned, vocabulary filled in.
    tokenizer: of all its texts.
    sources: open, by name.
    lengths: task -> its samples by the length of their texts, if that is asked.
  """

  config: Config
  tokenizer: Tokenizer
  sources: Mapping[str, Source]
  lengths: Mapping[str, Classes] = field(default_factory=dict)

  def order(self) -> Order:
    """The order of its samples.

    Raises:
      ConfigError: for weights or sources that do not fit.
    """
    return order_of(self.config, self.sources, self.lengths)

  @cached_property
  def stages(self) -> tuple[tuple[Stage, Session], ...]:
    """The stages of the run and the parts of each; itself if there are none."""
    if not self.config.stages:
      return ((stages_of(self.config)[0], self),)
    return tuple((s, self._of(s.config)) for s in stages_of(self.config))

  def _of(self, config: Config) -> Session:
    """The parts for the config of a stage."""
    sources = self.sources
    if config.data.inputs != self.config.data.inputs:
      sources = open_sources(config)  # OmniWorld renders as many frames
    lengths = text_classes(config, self.tokenizer, sources)
    return Session(config, self.tokenizer, sources, lengths)

  @cached_property
  def model(self) -> models.MiCo:
    """The model of the config."""
    return models.build(self.config.model)

  @cached_property
  def mesh(self) -> Mesh:
    """The device mesh; the first use touches the devices."""
    return make_mesh(self.config.parallel)

  @cached_property
  def optimizer(self) -> Optimizer:
    """The optimizer of the config."""
    return make_optimizer(
      self.config.optimizer,
      abstract_params(self.model, self.config),
      self.config.train.steps,
    )

  def tell_data(self) -> None:
    """Says what the tasks read, where that does not follow from the config."""
    tell_groups(self.config, self.sources)
    for name, task in self.config.tasks.items():
      if task.mixture:
        counts = ", ".join(f"{k} {n}" for k, n in task.mixture.items())
        say(f"task {name}: {counts}.")

  def check_training(self) -> None:
    """Builds what a training needs, compiling nothing.

    Raises:
      ConfigError: for options of mesh, optimizer or objectives that do not fit.
    """
    for stage, session in self.stages:
      check_mesh(session.config, self.mesh)
      session.order()
      _ = session.optimizer
      for task in session.config.tasks.values():
        make_loss(self.model, session.config, task, self.tokenizer.info)
      if session is not self and session._shapes() != self._shapes():
        raise ConfigError(
          f"stages.{stage.name}: its parameters are others than those of the "
          "run; start a run of its own from this one (--init)."
        )

  def _shapes(self) -> Any:
    params = abstract_params(self.model, self.config)
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), params)

  def extras(self) -> Extras:
    """The parts of each checkpoint besides the state."""
    info = self.tokenizer.info
    return Extras(
      logical_axes=logical_axes(
        self.model, abstract_params(self.model, self.config)
      ),
      tokenizer_files=self.tokenizer.files(),
      tokenizer_info={
        **dataclasses.asdict(info),
        "sha256": self.tokenizer.sha256,
      },
      preprocessing=Preparer(self.config, self.tokenizer).describe(),
      topology={**topology(), "mesh": dict(self.mesh.shape)},
      self_check=self._self_check(),
    )

  def _self_check(self) -> Any:
    """Computes the self-check; None where a host cannot hold the parameters.

    Of several hosts each may hold no more than its part of the state.
    """
    shapes = jax.tree.leaves(abstract_params(self.model, self.config))
    count = sum(math.prod(x.shape) for x in shapes)
    if jax.process_count() > 1 and count > SMALL:
      return None
    return make_self_check(self.config, self.tokenizer)


def resolve(config: Config) -> Session:
  """Checks a config and opens its data sources, without touching a device.

  Args:
    config: as loaded.

  Raises:
    ConfigError: for parts that do not fit together or files that are missing.
  """
  if config.train.keep_best:
    lower_is_better(config.train.keep_best)  # an unknown metric is an error
  for part in _parts(config):
    check_values(part)
    check_encoder(part)
    for task in part.tasks.values():
      select(part.objectives, task)  # names and groups, which others read
    check_inputs(part)
  config = pin_modes(config)
  sources = open_sources(config)
  config = pin_targets(pin_sources(config, sources), sources)
  tokenizer = make_tokenizer(
    config.data.tokenizer, training_captions(config, sources)
  )
  config = _with_vocabulary(config, tokenizer)
  for part in _parts(config):
    check_tasks(part)
  check_evaluation(config)
  lengths = text_classes(config, tokenizer, sources)
  return _with_mixture(Session(config, tokenizer, sources, lengths))


def _parts(config: Config) -> list[Config]:
  """The config, and those of its stages."""
  return [config, *(s.config for s in stages_of(config) if config.stages)]


def _with_mixture(session: Session) -> Session:
  """The session with what temperatures and text lengths came to pinned."""
  config = session.config
  if not config.data.text_buckets and not any(
    task.temperature for task in config.tasks.values()
  ):
    return session
  order = session.order()
  tasks = {
    name: dataclasses.replace(task, mixture=order.mixture(name))
    for name, task in config.tasks.items()
  }
  config = dataclasses.replace(config, tasks=tasks)
  return dataclasses.replace(session, config=config)
