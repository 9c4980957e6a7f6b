"""Every objective of the table passes the contract."""

from __future__ import annotations

import pytest

from mico_jax.config import ConfigError, ObjectivesConfig, TaskConfig
from mico_jax.objectives import OBJECTIVES, select
from mico_jax.testing.objective_contract import ObjectiveContract


@pytest.fixture(params=OBJECTIVES)
def name(request):
  return request.param


class TestObjectives(ObjectiveContract):
  """See `ObjectiveContract`."""


@pytest.mark.parametrize(
  ("objectives", "message"),
  [
    ({"contrastiv": ("tv",)}, "unknown objective 'contrastiv'; known: contr"),
    ({"contrastive": ("tq",)}, "no modality with letter 'q'"),
    ({"contrastive": ()}, "at least one objective"),
  ],
)
def test_mistakes_in_a_task_are_config_errors(objectives, message):
  with pytest.raises(ConfigError, match=message):
    select(ObjectivesConfig(), TaskConfig(objectives=objectives))
