"""Forecasting of a series: its next values from those before.

It needs no label. Of each sample the first `context` steps are shown to the
encoder; all that follows is hidden from it, dates included, and the `horizon`
steps behind the context are what it predicts. Any modality whose embedding cuts
series into windows (`mico_jax.layers.series_embed`) can be forecast, one frame
per sample, in a mode that sends values as they are: a mode that standardises a
whole recording would tell of its future.

Each channel is shifted and scaled by the mean and the deviation of its context,
encoded, predicted, and put back (reversible instance normalisation). The head
is a LayerNorm and a linear map of the tokens of the context, side by side; to
it a linear map from the context to the horizon is added, the same for all
channels, which alone is the linear model that transformers are compared with.
Errors are those of the usual benchmarks: of values standardised by `mean` and
`scale` of the training part, over all channels and steps.

Source: PatchTST, arXiv:2211.14730, section 3.1, for the flattened head; RevIN,
ICLR 2022 (openreview cGDAkQo1C0p); the linear map: arXiv:2205.13504.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mico_jax.aliases import Params
from mico_jax.config import ConfigError, ModelConfig
from mico_jax.config.fields import Group, Items, Range, Weight
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.modalities import (
  MODALITIES,
  CustomEmbedding,
  Modality,
  Mode,
  by_letter,
  letters,
)
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)
from mico_jax.objectives.heads import dense, normed

_STEPS = Annotated[int, Range(1, 65_536, "steps")]
_NUMBERS = Annotated[
  tuple[Annotated[float, Range(-1e30, 1e30)], ...], Items(0, 1024)
]
_MOST = 20.0  # deviations of the context; values beyond are clipped
_STD = 0.02  # of new weights


@dataclass(frozen=True)
class WindowConfig:
  """What of a series is shown, and what is predicted."""

  context: _STEPS = 336  # steps that are shown
  horizon: _STEPS = 96  # steps behind them that are predicted
  # Of each channel in the training part, in the order of the channels; errors
  # are of (value - mean) / scale. They say how many channels there are.
  mean: _NUMBERS = ()
  scale: _NUMBERS = ()


@dataclass(frozen=True)
class ForecastingConfig:
  """Forecasting of series."""

  weight: Weight = 1.0
  windows: Annotated[Mapping[Group, WindowConfig], Items(0, 64)] = field(
    default_factory=dict
  )


class _Layout(NamedTuple):
  """How the frames of a modality hold a series; see `SeriesEmbed`."""

  columns: int
  channels: int
  window: int
  length: int


def layout_of(modality: Modality) -> _Layout | None:
  """The layout of the frames of a modality; None: they hold no series."""
  embedding = modality.embedding
  names = ("columns", "channels", "window")
  if not isinstance(embedding, CustomEmbedding) or not all(
    name in embedding.options for name in names
  ):
    return None
  options = (embedding.options[name] for name in names)
  return _Layout(*options, length=embedding.frame[0])


class Forecast(NamedTuple):
  """Predicted and true values of the steps behind the context.

  Attributes:
    predicted: standardised by the training part, [B horizon channels].
    truth: likewise.
    there: 1 where the truth is known, else 0.
    naive: likewise: the mean of the context.
  """

  predicted: Float[Array, "B H C"]
  truth: Float[Array, "B H C"]
  there: Float[Array, "B H C"]
  naive: Float[Array, "B H C"]

  def mean(self, error: Float[Array, "B H C"]) -> Float[Array, " B"]:
    """The mean of an error over what is known of each row."""
    count = jnp.maximum(self.there.sum(axis=(1, 2)), 1)
    return (error * self.there).sum(axis=(1, 2)) / count


@dataclass(frozen=True)
class Forecasting(Objective):
  """Squared error of the next values of a series."""

  config: ForecastingConfig = field(default_factory=ForecastingConfig)
  name: ClassVar[str] = "forecasting"
  needs: ClassVar[frozenset[Need]] = frozenset({"pixels"})
  curves: ClassVar[tuple[str, ...]] = ("absolute_error",)
  lower_is_better: ClassVar[frozenset[str]] = frozenset({"absolute_error"})

  @classmethod
  def example_group(cls, group: str) -> str:
    """See `Objective`: the first series of the table."""
    del group
    return next(m.letter for m in MODALITIES.values() if layout_of(m))

  @classmethod
  def example(cls, group: str) -> dict[str, Any]:
    """See `Objective`."""
    window = {"context": 32, "horizon": 8, "mean": (0.1,) * 2}
    return {"windows": {group: {**window, "scale": (1.0, 2.0)}}}

  def check_group(self, group: str) -> None:
    """See `Objective`: one series, of which the windows are stated."""
    super().check_group(group)
    where = f"objectives.options.forecasting.windows.{group}"
    context = letters(group)
    layout = layout_of(by_letter(context)) if len(context) == 1 else None
    if group != context or layout is None:
      raise ConfigError(
        f"forecasting learns from one series; {group!r} is none."
      )
    if group not in self.config.windows:
      raise ConfigError(
        f"nothing says what is forecast of {group!r}; set {where}="
        "{'context': 336, 'horizon': 96, 'mean': (...), 'scale': (...)}."
      )
    spec = self.config.windows[group]
    if spec.context + spec.horizon > layout.length:
      raise ConfigError(
        f"{where}: context={spec.context} and horizon={spec.horizon} do not "
        f"fit a frame of {layout.length} steps."
      )
    if spec.context % layout.window:
      raise ConfigError(
        f"{where}.context={spec.context} must be a multiple of the "
        f"{layout.window} steps of a token."
      )
    if len(spec.mean) != len(spec.scale) or not (
      1 <= len(spec.mean) <= layout.channels
    ):
      raise ConfigError(
        f"{where}: {len(spec.mean)} numbers of mean and {len(spec.scale)} of "
        "scale; give both for each channel that the sources name, as they are "
        "in the training part."
      )
    if min(spec.scale) <= 0:
      raise ConfigError(f"{where}.scale={spec.scale}: expected numbers > 0.")

  def check_modes(self, group: str, modes: Mapping[str, Mode]) -> None:
    """See `Objective`: a mode that knows the whole series knows its future."""
    key = by_letter(letters(group)).key
    if modes[key].whole:
      raise ConfigError(
        f"data.inputs.{key}: mode {modes[key].name!r} scales a recording by "
        f"all of its values, also those to forecast; set mode='plain'."
      )

  def learns(self, group: str) -> WindowConfig | None:
    """See `Objective`."""
    return self.config.windows.get(group)

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """A head for each group, and the linear map."""
    heads = {}
    width = model.vision.width
    for index, (group, spec) in enumerate(sorted(self.config.windows.items())):
      layout = layout_of(by_letter(group))
      if layout is None:
        raise ConfigError(f"forecasting: {group!r} is no series.")
      shape = (
        spec.context // layout.window * width,
        spec.horizon * len(spec.mean),
      )
      draw = jax.random.normal(jax.random.fold_in(key, index), shape)
      heads[group] = {
        "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        "kernel": _STD * draw,
        "bias": jnp.zeros(shape[1]),
        "linear": {
          "kernel": jnp.zeros((spec.context, spec.horizon)),
          "bias": jnp.zeros(spec.horizon),
        },
      }
    return heads

  def forecast(
    self,
    model: Any,
    params: Params,
    group: str,
    pixels: Float[Array, "B 1 L D"],
    **options: Any,
  ) -> Forecast:
    """What is predicted of a series, and what came.

    Args:
      model: a `mico_jax.models.MiCo`.
      params: with those of the objective.
      group: the letter of the series.
      pixels: frames of values and flags.
      **options: of `model.encode`.

    Raises:
      ValueError: for several frames of a sample.
    """
    modality = by_letter(group)
    spec, layout = self.config.windows[group], layout_of(modality)
    assert layout is not None  # by `check_group`
    if pixels.shape[1] != 1:
      raise ValueError(
        f"{pixels.shape[1]} frames of a sample; set data.inputs."
        f"{modality.key}.frames=1 to forecast."
      )
    count = len(spec.mean)
    frame = pixels[:, 0]
    values, flags = jnp.split(frame, [layout.columns], axis=-1)
    end = spec.context + spec.horizon
    shown = (jnp.arange(layout.length) < spec.context).astype(flags.dtype)
    flags_shown = flags * shown[None, :, None]
    mean, deviation = _moments(values, flags_shown)
    scaled = jnp.clip((values - mean) / deviation, -_MOST, _MOST)
    dates = jnp.arange(layout.columns) >= layout.channels
    scaled = jnp.where(dates[None, None], values, scaled) * flags_shown
    inputs = jnp.concatenate([scaled, flags_shown], axis=-1)[:, None]
    tokens = model.encode(params, modality.key, inputs, **options)[:, 0]
    valid = model.valid_tokens(modality.key, inputs)[:, 0]
    first = tokens.shape[1] - layout.length // layout.window  # a class token
    last = first + spec.context // layout.window
    tokens, valid = tokens[:, first:last], valid[:, first:last]
    head = params["objective"][self.name][group]
    wide = tokens.astype(accumulation_dtype(tokens.dtype))
    wide = normed(wide, head["norm"]) * valid[..., None].astype(wide.dtype)
    rows = len(wide)
    out = dense(wide.reshape(rows, -1), head)
    out = out.reshape(rows, spec.horizon, count)
    past = jnp.swapaxes(scaled[:, : spec.context, :count], 1, 2)
    out = out + jnp.swapaxes(dense(past, head["linear"]), 1, 2)
    centre = jnp.asarray(spec.mean, out.dtype)[None, None]
    unit = jnp.asarray(spec.scale, out.dtype)[None, None]
    mean, deviation = mean[..., :count], deviation[..., :count]
    put_back = lambda x: (x * deviation + mean - centre) / unit
    coming = slice(spec.context, end)
    return Forecast(
      put_back(out),
      (values[:, coming, :count] - centre) / unit,
      flags[:, coming, :count],
      put_back(jnp.zeros_like(out)),
    )

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Objective`: 0 where nothing of the horizon is known."""
    key = inputs.letters_to_key[group]
    frames = inputs.pixels.get(key)
    if frames is None:  # its flags travel as they are
      frames = inputs.batch["inputs"][key]
    spec, layout = self.config.windows[group], layout_of(by_letter(group))
    assert layout is not None  # by `check_group`
    coming = slice(spec.context, spec.context + spec.horizon)
    channels = slice(layout.columns, layout.columns + len(spec.mean))
    known = (frames[:, :, coming, channels] > 0).any(axis=(1, 2, 3))
    return inputs.row_weight(group) * known.astype(jnp.float32)

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`; `absolute_error` is in deviations."""
    key = inputs.letters_to_key[group]
    found = self.forecast(
      inputs.model,
      inputs.params,
      group,
      inputs.pixels[key],
      row_keys=inputs.dropout_keys(f"forecasting/{group}"),
      train=inputs.train,
    )
    error = found.predicted - found.truth
    weights = self.weights(inputs, group)
    absolute = weighted_mean(found.mean(jnp.abs(error)), weights)
    return Output(
      values=found.mean(jnp.square(error)),
      weights=weights,
      metrics={"absolute_error": absolute},
      aux={},
    )


def _moments(
  values: Float[Array, "B L C"], flags: Float[Array, "B L C"]
) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
  """Mean and deviation of each channel where its flag is 1."""
  count = jnp.maximum(flags.sum(axis=1, keepdims=True), 1)
  mean = (values * flags).sum(axis=1, keepdims=True) / count
  squares = jnp.square((values - mean) * flags).sum(axis=1, keepdims=True)
  return mean, jnp.sqrt(squares / count + 1e-5)
