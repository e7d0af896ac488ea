"""A backbone with a FLARE adapter: two texts in, one answer out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingualift.fusion.checks import check_backbone, check_encoder, check_free, check_source
from lingualift.fusion.config import FlareConfig
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.inputs import answer_tokens, first_label, new_tokens, source_of
from lingualift.fusion.layer import ADAPTER, FlareLinear
from lingualift.fusion.paired import PairedModel, loaded
from lingualift.fusion.passes import Fused, FusedBlock, running, span_of, swap
from lingualift.fusion.places import block_of, find_places
from lingualift.fusion.reading import ENCODER, SourceReader


class FlareModel(SourceReader, PairedModel):
    """A backbone with a FLARE adapter; `flare` and `load_flare` make it.

    Where the backbone takes `input_ids` and `attention_mask`, it takes `source_input_ids` and `source_attention_mask`
    beside them (b, m): the same b texts in the source language, padded on either side; m and n differ as they like.

    With a source encoder (FLARE-MT), `source_input_ids` are that encoder's: the target texts, as `source_ids` makes
    them. With a cache (`cache_sources`), `source_rows` (b,) stand for `source_input_ids`.

    Attributes:
        flare_config: Its configuration.
        source_encoder: The translation model's encoder, frozen; None where the backbone reads the source.
        flare_projection: From that encoder's width to the backbone's, trained; None without it.
        source_cache: Source states on disk, or None.
    """

    beside = "flare_projection"

    def __init__(
        self,
        backbone: Any,
        config: FlareConfig,
        source_encoder: Any = None,
        first_stage: Path | str | None = None,
    ) -> None:
        check_encoder(source_encoder, config)
        check_free(backbone)
        places = find_places(backbone, config)
        check_backbone(backbone, config, {block_of(path) for path in places.fused})
        super().__init__(backbone, config, places.adapted, first_stage, {torch.nn.Linear: FlareLinear})
        self.flare_config = config
        fusion = FUSIONS[config.fusion]
        key_of = {path: _key(config, path) for path in places.fused}
        for path, key in key_of.items():
            backbone.get_submodule(path).fuse_by(fusion, path, key)
        for path in {block_of(path) for path in places.fused}:
            block = backbone.get_submodule(path)
            if not isinstance(block, FusedBlock):
                swap(block, FusedBlock)
            block.flare_path, block.flare_index = path, int(path.rsplit(".", 1)[-1])
        self._wanted = frozenset(key_of.values())
        self.source_cache = self.flare_projection = None
        if source_encoder is not None:
            self.source_encoder = source_encoder.get_encoder().requires_grad_(False)
            A = backbone.get_submodule(places.fused[0]).lora_A[ADAPTER]
            width = self.source_encoder.config.get_text_config().hidden_size
            self.flare_projection = torch.nn.Linear(width, A.in_features).to(A.weight.device, A.weight.dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        source_rows: Tensor | None = None,
        labels: Tensor | None = None,
        answer_start: Tensor | None = None,
        answer_tokens: int | None = None,
        **more: Any,
    ) -> Any:
        """The backbone's output for the target, fused with the source.

        Args:
            input_ids: Target tokens (b, n).
            attention_mask: 1 for real target tokens, 0 for padding (b, n); None where all are real.
            source_input_ids: Source tokens (b, m). They must not contain the answer. None while fusion is off, and
                for further tokens with a cache that a fused pass has filled.
            source_attention_mask: 1 for real source tokens (b, m); None where all are real.
            source_rows: Numbers (b,) of the sources in `source_cache`, in place of the two.
            labels: As the backbone takes them.
            answer_start: Position (b,) of every row of a decoder at which the answer starts; None for where `labels`
                start, or for no answer without them.
            answer_tokens: How many tokens the source is to answer with (`answer_source='generate'`), for a prompt whose
                answer follows in further calls; None for as many as the longest answer has here.
            more: What else the backbone takes; names that begin with `source_` go to the source pass.

        Raises:
            UserError: unequal numbers of rows, a source without a token or longer than the limit, a row of the cache
                that is not there, or labels that leave no prompt.
            FusionError: there is no source.
        """
        theirs = source_of(more, source_input_ids, source_attention_mask, source_rows)
        size = more["inputs_embeds"].shape[:2] if input_ids is None and "inputs_embeds" in more else None
        shape = size if input_ids is None else input_ids.shape
        if self._causal and answer_start is None and labels is not None and labels.dim() == 2 and theirs:
            answer_start = first_label(labels, attention_mask, shape)
        room = more if answer_tokens is None else {**more, "max_new_tokens": answer_tokens}
        this = self._pass(input_ids, size, attention_mask, theirs, answer_start, room)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **more}
        with running(this):
            return self.get_base_model()(**{key: value for key, value in given.items() if value is not None})

    def _generating(self, input_ids: Tensor, more: dict[str, Any]) -> dict[str, Any]:
        if self.flare_config.answer_source != "generate":
            return more
        settings = self.get_base_model().generation_config
        return {"max_new_tokens": new_tokens(input_ids.shape[1], more, settings), **more}

    def _fused(
        self, mask: Tensor, theirs: dict[str, Any], answer_start: Tensor | None, more: Mapping[str, Any]
    ) -> Fused:
        target = span_of(mask, answer_start)
        prompt_end = None
        if "source_rows" in theirs:
            states, source_mask = self._cached(theirs.pop("source_rows"), mask)
        else:
            ids, source_mask = theirs.pop("source_input_ids"), theirs.pop("source_attention_mask", None)
            source_mask = torch.ones_like(ids) if source_mask is None else source_mask
            generates = self._causal and self.flare_config.answer_source == "generate"
            tokens = answer_tokens(target, more) if generates else 0
            reader = self.get_base_model() if self.source_encoder is None else self.source_encoder
            check_source(ids, source_mask, len(mask), tokens, reader.config)
            if generates:
                ids, source_mask, prompt_end = self._answered(ids, source_mask, tokens)
            states = self.source_states(ids, source_mask, **theirs)
        return Fused(
            states=states,
            source=span_of(source_mask, prompt_end),
            target=target,
            mask=mask,
            causal=self._causal,
            padding=self.flare_config.padding,
            answer_source=self.flare_config.answer_source,
            projection=self.flare_projection,
        )


def flare(
    backbone: Any, config: FlareConfig, *, source_encoder: Any = None, first_stage: Path | str | None = None
) -> FlareModel:
    """Put a new FLARE adapter on a backbone, which is changed in place; draw its start by torch's seed.

    Args:
        backbone: A model of transformers: decoder, encoder or encoder-decoder.
        config: What adapter.
        source_encoder: The translation model (NLLB, M2M100) whose encoder reads the source, which is frozen; for a
            configuration that names one, and only for that.
        first_stage: Folder of the LoRA adapter that was trained on the source language, to be kept frozen beside and
            saved with this one: for 4-bit backbones, into which it cannot be merged without loss. Elsewhere merge it.
            A head in it (`modules_to_save` here and there) is where this one's begins.

    Raises:
        UserError: a module name that matches nothing, or a backbone, encoder or first stage that does not fit.
    """
    return FlareModel(backbone, config, source_encoder, first_stage)


def load_flare(
    backbone: Any, folder: str | Path, *, source_encoder: Any = None, is_trainable: bool = False
) -> FlareModel:
    """Put a saved FLARE adapter on a backbone, which is changed in place.

    Args:
        backbone: The model that it was trained on.
        folder: What `save_pretrained` wrote.
        source_encoder: The translation model that it was trained with, if it was.
        is_trainable: Whether it is to be trained further.

    Raises:
        UserError: no FLARE adapter, damaged, or made for another backbone.
    """
    config = FlareConfig.from_folder(Path(folder))
    return loaded(
        lambda first_stage: flare(backbone, config, source_encoder=source_encoder, first_stage=first_stage),
        folder,
        is_trainable=is_trainable,
    )


def _key(config: FlareConfig, path: str) -> str:
    """Name of the source states that a fused layer meets."""
    if config.source_encoder is not None:
        return ENCODER
    return path if config.source_state == "projection-input" else block_of(path)
