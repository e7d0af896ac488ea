"""Bottleneck adapters (Houlsby, Pfeiffer, parallel): importing this makes peft know the kind."""

from lingualift.bottlenecks.tuner import BottleneckConfig, BottleneckLayer, BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]
