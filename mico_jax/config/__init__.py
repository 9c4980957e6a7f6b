"""Config of a run: frozen dataclasses with defaults, ranges and units.

A config file (`configs/*.py`) returns an `ml_collections.ConfigDict` of these
dataclasses (`to_config_dict`), which `from_config_dict` converts back and
checks, so that a typo or a wrong type fails before a device is used. This
package needs only the standard library, since models and kernels use its types
where `ml_collections` is not installed.
"""

from mico_jax.config.conversion import (
  check,
  from_config_dict,
  from_dict,
  leaves,
  to_config_dict,
  to_dict,
  to_json,
)
from mico_jax.config.data import (
  AudioConfig,
  DataConfig,
  InputConfig,
  SourceConfig,
  TokenizerConfig,
)
from mico_jax.config.fields import ConfigError, keys_in
from mico_jax.config.loading import (
  config_dirs,
  find,
  load,
  override,
  parse_override,
)
from mico_jax.config.model import (
  ModelConfig,
  TextConfig,
  VisionConfig,
)
from mico_jax.config.objectives import (
  CaptioningConfig,
  ContrastiveConfig,
  MaskedModellingConfig,
  MatchingConfig,
  ObjectivesConfig,
  QuestionAnsweringConfig,
  TaskConfig,
)
from mico_jax.config.stages import Stage, stage_at, stages_of
from mico_jax.config.targets import TargetConfig, check_target
from mico_jax.config.training import (
  MAX_BEAMS,
  Config,
  EvaluationConfig,
  GenerationConfig,
  OptimizerConfig,
  ParallelConfig,
  StageConfig,
  TrainConfig,
)

__all__ = [
  "MAX_BEAMS",
  "AudioConfig",
  "CaptioningConfig",
  "Config",
  "ConfigError",
  "ContrastiveConfig",
  "DataConfig",
  "EvaluationConfig",
  "GenerationConfig",
  "InputConfig",
  "MaskedModellingConfig",
  "MatchingConfig",
  "ModelConfig",
  "ObjectivesConfig",
  "OptimizerConfig",
  "ParallelConfig",
  "QuestionAnsweringConfig",
  "SourceConfig",
  "Stage",
  "StageConfig",
  "TargetConfig",
  "TaskConfig",
  "TextConfig",
  "TokenizerConfig",
  "TrainConfig",
  "VisionConfig",
  "check",
  "check_target",
  "config_dirs",
  "find",
  "from_config_dict",
  "from_dict",
  "keys_in",
  "leaves",
  "load",
  "override",
  "parse_override",
  "stage_at",
  "stages_of",
  "to_config_dict",
  "to_dict",
  "to_json",
]
