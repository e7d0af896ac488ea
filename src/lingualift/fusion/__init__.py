"""FLARE: hidden states of source and target language meet in LoRA's bottleneck (https://arxiv.org/abs/2501.06892)."""

from lingualift.activations import recording
from lingualift.fusion.cache import SourceCache
from lingualift.fusion.config import FlareConfig
from lingualift.fusion.model import FlareModel, flare, load_flare
from lingualift.fusion.pairs import PairCollator, pair, source_ids

__all__ = [
    "FlareConfig",
    "FlareModel",
    "PairCollator",
    "SourceCache",
    "flare",
    "load_flare",
    "pair",
    "recording",
    "source_ids",
]
