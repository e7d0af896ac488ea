"""The kinds of adapters that read a source side, by `Adapter.kind`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lingualift.backbone.architectures import fusion_names, linear_names
from lingualift.config import Adapter
from lingualift.fusion.config import FlareConfig, FusionConfig, MixupConfig
from lingualift.fusion.mixup import load_mixup, mixup
from lingualift.fusion.model import flare, load_flare
from lingualift.fusion.places import find_mixed, find_places


@dataclass(frozen=True)
class Kind:
    """A kind.

    Attributes:
        config: Its configuration.
        put_on: Puts a new adapter on a backbone.
        load: Puts a saved one on.
        find: Finds where one goes in a backbone, which needs no weights.
    """

    config: type[FusionConfig]
    put_on: Callable[..., Any]
    load: Callable[..., Any]
    find: Callable[[Any, Any], Any]


KINDS = {
    kind.config.peft_type.lower(): kind
    for kind in (
        Kind(FlareConfig, flare, load_flare, find_places),
        Kind(MixupConfig, mixup, load_mixup, find_mixed),
    )
}


def fusion_config(model: Any, adapter: Adapter, settings: Mapping[str, Any]) -> FusionConfig:
    """The configuration that an experiment asks for.

    Args:
        model: The backbone.
        adapter: Rank, alpha, dropout and the layers of LoRA.
        settings: `kind`, and further fields of its configuration; `fusion_modules` None for queries and values.

    Raises:
        UserError: as that configuration, or a backbone whose queries and values are not recognised.
    """
    chosen = {**settings, "target_modules": adapter.modules or linear_names(model)}
    config = KINDS[chosen.pop("kind")].config
    if config is FlareConfig:
        chosen["fusion_modules"] = chosen.get("fusion_modules") or fusion_names(model)
    return config(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, **chosen)
