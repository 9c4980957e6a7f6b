"""What a source states of its samples: unit, rate, channels of each modality.

`data.sources.NAME.units`, `rates` and `channels` state them by modality; a
modality may have an older field of its own for the unit (`depth_unit`).
"""

from __future__ import annotations

from mico_jax.config import Config, SourceConfig
from mico_jax.data.sources import SOURCES
from mico_jax.modalities import MODALITIES, UNSTATED, Stated, preprocessing


def stated(spec: SourceConfig, key: str) -> Stated:
  """What a source states of its samples of a modality."""
  field = MODALITIES[key].unit_field
  own = getattr(spec, field) if field else ""
  kind = SOURCES[spec.kind]
  usual, old = kind.usual(spec, key), getattr(kind, field, "") if field else ""
  names = spec.channels.get(key, "")
  return Stated(
    unit=spec.units.get(key, "") or own or old or usual.unit,
    rate=spec.rates.get(key, 0.0) or usual.rate,
    channels=tuple(names.split(",")) if names else (),
  )


def without_source(config: Config, key: str) -> Stated:
  """What the first source states that states anything; else what modes expect.

  For sizes, and for `to_pixels`, which do not depend on the source.
  """
  said = (stated(spec, key) for spec in config.data.sources.values())
  mode = preprocessing.mode_of(config, key, train=False)
  usual = Stated(mode.unit, MODALITIES[key].rate)
  return next((s for s in said if s != UNSTATED), usual)


def common_channels(config: Config, key: str) -> tuple[str, ...]:
  """The channels of a modality that its sources name alike; (): none.

  They are what a model of the config was trained on.
  """
  named = {stated(s, key).channels for s in config.data.sources.values()}
  named.discard(())
  return named.pop() if len(named) == 1 else ()
