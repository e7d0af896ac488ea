"""Hidden states of source and target language meet: FLARE, in LoRA's bottleneck, and X-Mixup, behind one block."""

from lingualift.encoding.collator import PairCollator, pair, source_ids
from lingualift.fusion.cache import SourceCache
from lingualift.fusion.config import FlareConfig, FusionConfig, MixupConfig
from lingualift.fusion.layer import recording
from lingualift.fusion.mixup import MixupModel, load_mixup, mixup
from lingualift.fusion.model import FlareModel, flare, load_flare
from lingualift.fusion.paired import PairedModel

MODELS: dict[type[FusionConfig], type[PairedModel]] = {FlareConfig: FlareModel, MixupConfig: MixupModel}
"""Models, by the kind of their configuration."""

__all__ = [
    "FlareConfig",
    "FlareModel",
    "MixupConfig",
    "MixupModel",
    "PairCollator",
    "SourceCache",
    "flare",
    "load_flare",
    "load_mixup",
    "mixup",
    "pair",
    "recording",
    "source_ids",
]
