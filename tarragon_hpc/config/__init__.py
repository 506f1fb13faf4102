"""Configuration: YAML → pydantic. Every mistake names its key, its value and what is allowed."""

from tarragon_hpc.config.load import dump_config, load_config, parse_override
from tarragon_hpc.config.schema import (
    AttentionConfig,
    BatchingConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    DetectionConfig,
    ExpertsConfig,
    GatewayConfig,
    ModelConfig,
    RunConfig,
    TransportConfig,
)

__all__ = [
    "AttentionConfig",
    "BatchingConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DetectionConfig",
    "ExpertsConfig",
    "GatewayConfig",
    "ModelConfig",
    "RunConfig",
    "TransportConfig",
    "dump_config",
    "load_config",
    "parse_override",
]
