"""TARRAGON: MoE inference in which the death of any worker is a blip, not an outage."""

__version__ = "0.1.0"
