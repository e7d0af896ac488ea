"""What a backbone, a configuration and a batch must be, said before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from lingualift.backbone.architectures import blocks, family_of, positions_of
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.config import FlareConfig, FusionConfig


def check_free(backbone: Any) -> None:
    """Check that no adapter is on a backbone.

    Raises:
        UserError: one is.
    """
    if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        raise UserError(
            "backbone", "holds an adapter already", "a backbone alone", "merge it into the backbone first"
        )


def check_backbone(backbone: Any, config: FusionConfig, fused: Iterable[str]) -> None:
    """Check a backbone and what a configuration asks of it, beside its places.

    Args:
        backbone: The model.
        config: Of the adapter.
        fused: Paths of the blocks in which source and target meet.

    Raises:
        UserError: it is spread over devices, or cannot do what is asked.
    """
    for path in fused:
        if "forward" in vars(backbone.get_submodule(path)):
            raise UserError(
                "backbone",
                f"{path} runs through hooks of accelerate's (several devices, or offloading)",
                "a backbone on one device",
                "load it without device_map, or with all of it on one device",
            )
    if (
        isinstance(config, FlareConfig)
        and family_of(backbone.config) != "decoder"
        and config.answer_source != "last"
    ):
        raise UserError(
            "answer_source",
            f"{config.answer_source!r} means nothing here: no answer stands behind an encoder's text",
            "'last', the default",
            "leave it out",
        )
    _check_whole(backbone, config)


def _check_whole(backbone: Any, config: FusionConfig) -> None:
    """Check the modules that are trained whole: none may be one that the source pass runs through."""
    paths = [path for path, _ in backbone.named_modules()]
    embeddings = backbone.get_input_embeddings()
    inside = {path for path, _, _ in blocks(backbone)}
    for name in config.modules_to_save or ():
        found = [path for path in paths if path == name or path.endswith(f".{name}")]
        if not found:
            names = {path.rsplit(".", 1)[-1] for path in paths}
            raise UserError("modules_to_save", f"{name!r} matches no module", mend=did_you_mean(name, names))
        for path in found:
            module = backbone.get_submodule(path)
            if any(part is embeddings for part in module.modules()) or any(
                layer == path or layer.startswith(f"{path}.") for layer in inside
            ):
                raise UserError(
                    "modules_to_save",
                    f"{path} is a part of what reads the source, whose states come from the backbone as it is",
                    "a head, behind the blocks",
                    "leave it out",
                )


def check_encoder(encoder: Any, config: FlareConfig) -> None:
    """Check that a source encoder is there where a configuration has one, and nowhere else.

    Raises:
        UserError: it is missing, not asked for, or has no encoder.
    """
    if encoder is None and config.source_encoder is not None:
        raise UserError(
            "source_encoder",
            f"none is given, and the configuration has {config.source_encoder!r}",
            "the translation model that it names",
            "pass it as source_encoder=",
        )
    if encoder is not None and config.source_encoder is None:
        raise UserError(
            "source_encoder",
            "is given, and the configuration has none",
            mend="set FlareConfig(source_encoder=...) to its name, or leave it out",
        )
    if encoder is not None and family_of(encoder.config) != "encoder-decoder":
        raise UserError(
            "source_encoder",
            f"{type(encoder).__name__} is no translation model",
            "an encoder-decoder such as NLLB or M2M100",
            "choose one",
        )


def check_source(ids: Tensor, mask: Tensor, rows: int, further: int, config: Any) -> None:
    """Check source tokens (b, m) and their mask.

    Args:
        ids: Their ids.
        mask: 1 for real tokens.
        rows: Rows of the target.
        further: Tokens that will be generated behind them.
        config: transformers' configuration of the model that reads them.

    Raises:
        UserError: unequal numbers of rows, a source without a token, or one that is too long.
    """
    if len(ids) != rows:
        raise UserError(
            "source_input_ids", f"{len(ids)} rows", f"{rows}, one for each target row", "pair the rows"
        )
    if mask.shape != ids.shape:
        found, expected = (tuple(each.shape) for each in (mask, ids))
        raise UserError("source_attention_mask", f"is {found}", f"{expected}, as source_input_ids", "mend it")
    lengths = mask.bool().sum(1)
    if not bool(lengths.all()):
        raise UserError(
            "source_attention_mask", "a row without a token", "a source for each row", "translate it"
        )
    check_length("source_input_ids", int(lengths.max()) + further, config)


def check_length(where: str, tokens: int, config: Any) -> None:
    """Check that a model has positions for so many tokens.

    Raises:
        UserError: it has fewer.
    """
    limit = positions_of(config)
    if limit is not None and tokens > limit:
        raise UserError(
            where,
            f"a source of {tokens} tokens",
            f"at most {limit}, the positions of the model that reads it",
            "shorten it, or choose a model with more positions",
        )
