"""Configuration: the schema, and how it is read from YAML and dotted overrides."""

from bigcircuit.config.schema import (
    MEMBER_KEYS,
    AblationConfig,
    Config,
    GatesConfig,
    ModelConfig,
    PenaltyConfig,
    PopulationConfig,
    Section,
    SplitConfig,
    TargetConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = [
    "MEMBER_KEYS",
    "AblationConfig",
    "Config",
    "GatesConfig",
    "ModelConfig",
    "PenaltyConfig",
    "PopulationConfig",
    "Section",
    "SplitConfig",
    "TargetConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
]
