"""Alarms of a training run: a collapsed loss, non-finite steps.

A loss that stays at its value of chance, where all rows look the same to the
model (ln(batch) of a contrastive loss, see `Objective.chance_loss`), shows that
nothing is learned although every number is finite. The watch compares
unweighted losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

COLLAPSE_TOLERANCE = 0.01  # relative distance to chance
_IDS_SHOWN = 16

COLLAPSE_ADVICE = (
  "Look at the samples (mico-jax trace --show): do texts and inputs belong "
  "together? Then try a longer warm-up or a smaller learning rate, a larger "
  "batch, and see that neither tower is frozen and that the temperature moved."
)


class NonFiniteError(RuntimeError):
  """Too many steps in a row had a non-finite loss or gradient.

  Attributes:
    step: index of the last one.
    sample_ids: ids of its batch.
  """

  def __init__(self, message: str, *, step: int, sample_ids: Sequence[str]):
    """Keeps what the loop logs beside the message."""
    super().__init__(message)
    self.step = step
    self.sample_ids = tuple(sample_ids)


class LossWatch:
  """Watches the losses of each step, in order.

  Attributes:
    nonfinite_in_a_row: non-finite steps since the last finite one.
    nonfinite_total: non-finite steps of this process.
    collapsed: names of the losses that gave the alarm.
  """

  def __init__(
    self,
    *,
    warmup_steps: int,
    collapse_patience: int = 200,
    nonfinite_patience: int = 5,
  ):
    """Sets the limits.

    Args:
      warmup_steps: steps before which a loss at chance is normal.
      collapse_patience: steps in a row at chance until the alarm; 0: never.
      nonfinite_patience: non-finite steps in a row until the run stops; 0:
        never.
    """
    self.nonfinite_in_a_row = 0
    self.nonfinite_total = 0
    self.collapsed: list[str] = []
    self._warmup_steps = warmup_steps
    self._collapse_patience = collapse_patience
    self._nonfinite_patience = nonfinite_patience
    self._flat_steps: dict[str, int] = {}

  def update(
    self,
    step: int,
    *,
    finite: bool,
    losses: Mapping[str, float] = {},
    chance: Mapping[str, float] = {},
    sample_ids: Callable[[], Sequence[str]] | Sequence[str] = (),
    count: int = 1,
  ) -> str | None:
    """Takes the outcome of one step, or of `count` steps since the last update.

    Args:
      step: its index.
      finite: false if the step was skipped for a non-finite loss or gradient.
      losses: unweighted losses in nats, by name.
      chance: their values if nothing is learned; losses without are not
        watched.
      sample_ids: ids of the batch, or a function that finds them; asked only
        when the run stops.
      count: steps that the values stand for.

    Returns:
      The text of an alarm, once per loss name; else None.

    Raises:
      NonFiniteError: after `nonfinite_patience` non-finite steps in a row.
    """
    if not finite:
      self.nonfinite_in_a_row += count
      self.nonfinite_total += count
      if 0 < self._nonfinite_patience <= self.nonfinite_in_a_row:
        self._stop(step, sample_ids)
      return None
    self.nonfinite_in_a_row = 0
    return self._collapse(step, losses, chance, count)

  def _stop(
    self, step: int, sample_ids: Callable[[], Sequence[str]] | Sequence[str]
  ) -> None:
    ids = list(sample_ids() if callable(sample_ids) else sample_ids)
    shown = ", ".join(map(str, ids[:_IDS_SHOWN])) or "not known"
    if len(ids) > _IDS_SHOWN:
      shown += f", ... ({len(ids)} in all)"
    raise NonFiniteError(
      f"{self.nonfinite_in_a_row} non-finite steps in a row (the last: step "
      f"{step}); training stops. Samples of that batch: {shown}. Lower "
      "optimizer.learning_rate or optimizer.clip_norm, or look at the samples "
      f"with mico-jax trace --step {step} --show.",
      step=step,
      sample_ids=ids,
    )

  def _collapse(
    self,
    step: int,
    losses: Mapping[str, float],
    chance: Mapping[str, float],
    count: int,
  ) -> str | None:
    if not self._collapse_patience:
      return None
    alarm = None
    for name, flat in chance.items():
      loss = losses[name]
      near = abs(loss - flat) <= COLLAPSE_TOLERANCE * abs(flat)
      if step < self._warmup_steps or not near:
        self._flat_steps[name] = 0
        continue
      self._flat_steps[name] = self._flat_steps.get(name, 0) + count
      waited = self._flat_steps[name]
      if waited >= self._collapse_patience and name not in self.collapsed:
        self.collapsed.append(name)
        alarm = (
          f"ALARM at step {step}: the loss {name} = {loss:.3f} has been at "
          f"chance, {flat:.3f}, for {waited} steps after warm-up: nothing is "
          f"being learned. {COLLAPSE_ADVICE}"
        )
    return alarm
