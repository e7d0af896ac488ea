"""The kinds of adapters that read a source side, by `Adapter.kind`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lingualift.fusion.config import FlareConfig, FusionConfig, MixupConfig
from lingualift.fusion.mixup import load_mixup, mixup
from lingualift.fusion.model import flare, load_flare


@dataclass(frozen=True)
class Kind:
    """A kind.

    Attributes:
        config: Its configuration.
        put_on: Puts a new adapter on a backbone.
        load: Puts a saved one on.
    """

    config: type[FusionConfig]
    put_on: Callable[..., Any]
    load: Callable[..., Any]


KINDS = {
    kind.config.peft_type.lower(): kind
    for kind in (Kind(FlareConfig, flare, load_flare), Kind(MixupConfig, mixup, load_mixup))
}
