"""Configuration: YAML → pydantic. Every mistake names its key, its value and what is allowed."""

from tarragon_hpc.config.load import dump_config, load_config, parse_override
from tarragon_hpc.config.merge import merged
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
from tarragon_hpc.config.slurm import NodesConfig, SlurmConfig, time_minutes

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
    "NodesConfig",
    "RunConfig",
    "SlurmConfig",
    "TransportConfig",
    "dump_config",
    "load_config",
    "merged",
    "parse_override",
    "time_minutes",
]
