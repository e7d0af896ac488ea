"""FLARE: hidden states of source and target language meet in LoRA's bottleneck (https://arxiv.org/abs/2501.06892)."""

from lingualift.fusion.config import FlareConfig
from lingualift.fusion.model import FlareModel, flare, load_flare

__all__ = ["FlareConfig", "FlareModel", "flare", "load_flare"]
