"""Checks of what a source states: `units`, `rates`, `channels`."""

from __future__ import annotations

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.sources.base import SourceKind
from mico_jax.modalities import MODALITIES
from mico_jax.printing import known_names


def check_statements(
  name: str, spec: SourceConfig, kind: type[SourceKind]
) -> None:
  """Checks what a source states.

  Args:
    name: of the source in the config.
    spec: its fields.
    kind: of the source, which may know a unit by itself.

  Raises:
    ConfigError: for modalities and units that do not exist, statements that a
      modality has no use for, and two that differ.
  """
  where = f"data.sources.{name}"
  able = {
    "units": [k for k, m in MODALITIES.items() if m.units],
    "rates": [k for k, m in MODALITIES.items() if m.rate],
    "channels": [k for k, m in MODALITIES.items() if m.named],
  }
  for field, known in able.items():
    for key in getattr(spec, field):
      if key not in known:
        raise ConfigError(
          f"{where}.{field} names {key!r}; {known_names(key, known)}"
        )
  for key, unit in spec.units.items():
    modality = MODALITIES[key]
    if unit not in modality.units:
      raise ConfigError(
        f"{where}.units[{key!r}]={unit!r}; {known_names(unit, modality.units)}"
      )
    field = modality.unit_field
    own = [getattr(x, field, "") for x in (spec, kind) if field]
    if others := {*own} - {"", unit}:
      raise ConfigError(
        f"{where} states two units of {key}: {field}={others.pop()!r} and "
        f"units[{key!r}]={unit!r}; remove one."
      )
  for key, names in spec.channels.items():
    parts = names.split(",")
    if not all(parts) or len(set(parts)) < len(parts):
      raise ConfigError(
        f"{where}.channels[{key!r}]={names!r}: names joined by commas, each "
        "once."
      )
