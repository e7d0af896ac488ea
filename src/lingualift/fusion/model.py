"""A backbone with a FLARE adapter: two texts in, one answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingualift.encoding.parallel import pad_sources
from lingualift.errors import UserError
from lingualift.fusion.cache import SourceCache, model_fingerprint, open_or_make
from lingualift.fusion.config import FlareConfig, block_of
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.layer import ADAPTER, FlareLinear
from lingualift.fusion.paired import (
    PairedModel,
    check_length,
    check_source,
    first_label,
    source_of,
)
from lingualift.fusion.passes import (
    Fused,
    FusedBlock,
    FusionError,
    SourcePass,
    SourcePassDone,
    Span,
    fuse_block,
    running,
    source_inputs,
    span_of,
    stack_of,
)
from lingualift.fusion.start import check_encoder

ENCODER = "source_encoder"
"""Key of the states of a source encoder, which all fused layers meet."""


class FlareModel(PairedModel):
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
        super().__init__(backbone, config, first_stage, {torch.nn.Linear: FlareLinear})
        self.flare_config = config
        key_of = {path: _key(config, path) for path in self._places.fused}
        for path, key in key_of.items():
            backbone.get_submodule(path).fuse_by(FUSIONS[config.fusion], path, key)
        for path in self._places.blocks:
            fuse_block(backbone, path, FusedBlock)
        self._wanted = frozenset(key_of.values())
        self.source_cache: SourceCache | None = None
        self.flare_projection = None
        if source_encoder is not None:
            self.source_encoder = source_encoder.get_encoder().requires_grad_(False)
            A = backbone.get_submodule(self._places.fused[0]).lora_A[ADAPTER]
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
        shape = (size if input_ids is None else input_ids.shape) if self._causal and theirs else None
        if shape and answer_start is None and labels is not None and labels.dim() == 2:
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
        return {"max_new_tokens": _new_tokens(input_ids.shape[1], more, settings), **more}

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
            tokens = _answer_tokens(target, more) if generates else 0
            check_source(ids, source_mask, len(mask), tokens, self._reader.config)
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

    def cache_sources(
        self,
        rows: Sequence[Sequence[int]],
        folder: Path | str,
        *,
        batch_size: int = 16,
        tell: Callable[[str], None] = print,
    ) -> SourceCache:
        """Keep the source states of rows on disk, in bfloat16, and read them from there for `source_rows`.

        The cache has a folder of its own within `folder`, named by rows, the weights that read them, and the places
        that fuse; what is there already is opened. The states of all rows are in it: that of a block is as large as
        its width times 2 bytes for each token.

        Args:
            rows: Token ids of every source; `source_rows` counts from 0.
            folder: Folder of caches.
            batch_size: Rows that are read at once.
            tell: Takes a line that says how large the cache will be, before it is made.

        Raises:
            UserError: a cache that will not fit or is damaged, a row that is empty or too long, weights that are to
                be trained, or sources that answer (`answer_source='generate'`).
        """
        if self.flare_config.answer_source == "generate":
            raise UserError(
                "answer_source",
                "'generate' lets each source answer anew, which no cache holds",
                "'last' or 'none'",
                "choose one of them, or do without a cache",
            )
        for row in rows:
            check_length("source rows", len(row), self._reader.config)
        config = self.flare_config
        places = [] if self.source_encoder is not None else [config.source_state, *sorted(self._wanted)]
        about = {"weights": model_fingerprint(self._stack), "places": places}
        device, pad = self.get_base_model().device, self._reader.config.get_text_config().pad_token_id or 0

        def states_of(batch: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Tensor]:
            ids, mask = pad_sources([{"source_input_ids": list(row)} for row in batch], pad, device).values()
            return self.source_states(ids, mask), mask

        self.source_cache = open_or_make(Path(folder), rows, about, states_of, batch_size, tell)
        return self.source_cache

    @property
    def _reader(self) -> Any:
        """The model that reads the source."""
        return self.get_base_model() if self.source_encoder is None else self.source_encoder

    @property
    def _stack(self) -> Any:
        """Its stack of blocks."""
        return stack_of(self.get_base_model()) if self.source_encoder is None else self.source_encoder

    @torch.no_grad()
    def source_states(
        self, source_input_ids: Tensor, source_attention_mask: Tensor, **more: Any
    ) -> dict[str, Tensor]:
        """States (b, m, width) of source tokens (b, m) by block or projection, from the backbone without the adapter.

        Dropout is off, nothing after the last fused block is computed, and no gradient is kept.
        """
        model = self._stack
        causal = self._causal and self.source_encoder is None
        given = source_inputs(source_input_ids, source_attention_mask, more, causal)
        if self.source_encoder is not None:
            with _at_rest(model):
                return {ENCODER: model(**given).last_hidden_state}
        this = SourcePass(self._wanted, self.flare_config.source_state)
        with running(this), _at_rest(model):
            try:
                model(**given)
            except SourcePassDone:
                return this.states
            finally:
                torch.clear_autocast_cache()  # weights that were cast here were cast without a gradient
        missing = ", ".join(sorted(self._wanted - this.states.keys()))
        raise FusionError(f"the source pass did not reach {missing}")

    @torch.no_grad()
    def _answered(self, ids: Tensor, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Source prompts with the backbone's own greedy answers behind them; their mask; where the prompts end."""
        backbone = self.get_base_model()
        order = mask.bool().int().argsort(dim=1, stable=True)  # padding to the left
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        prompt = ids.shape[1]
        prompt_end = torch.full((len(ids),), prompt, device=ids.device)
        if tokens < 1:
            return ids, mask, prompt_end
        with running(SourcePass()), _at_rest(backbone):
            ids = backbone.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, num_beams=1
            )
        ends = backbone.generation_config.eos_token_id
        ended = torch.isin(ids[:, prompt:], torch.tensor([] if ends is None else ends, device=ids.device))
        real = ended.int().cumsum(1) - ended.int() == 0  # up to the first end, and the end too
        return ids, torch.cat([mask, real.to(mask.dtype)], dim=1), prompt_end

    def _cached(self, rows: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Source states of rows of the cache, and their mask."""
        if self.source_cache is None:
            raise UserError("source_rows", "there is no cache", mend="call cache_sources before")
        if len(rows) != len(mask):
            expected = f"{len(mask)}, one for each target row"
            raise UserError("source_rows", f"{len(rows)} rows", expected, "pair the rows")
        return self.source_cache.read(rows, mask.device, self.get_base_model().dtype)


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
    return FlareModel.load(backbone, config, folder, is_trainable=is_trainable, source_encoder=source_encoder)


def _key(config: FlareConfig, path: str) -> str:
    """Name of the source states that a fused layer meets."""
    if config.source_encoder is not None:
        return ENCODER
    return path if config.source_state == "projection-input" else block_of(path)


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """Dropout and gradient checkpointing off; what was in training is again afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _answer_tokens(target: Span, more: Mapping[str, Any]) -> int:
    """How many tokens the source side is to generate: as many as the target's answers have, or may have."""
    if "max_new_tokens" in more:
        return int(more["max_new_tokens"])
    return int((target.end - target.prompt_end).max())


def _new_tokens(prompt: int, more: Mapping[str, Any], settings: Any) -> int:
    """How many tokens `generate` may answer with behind a prompt, by its arguments or the model's settings."""
    for given in (more, vars(more.get("generation_config") or settings)):
        if given.get("max_new_tokens") is not None:
            return int(given["max_new_tokens"])
        if given.get("max_length") is not None:
            return int(given["max_length"]) - prompt
    raise UserError(
        "max_new_tokens",
        "is not set, and answer_source='generate' lets the source answer too",
        "a number of tokens",
        "pass max_new_tokens=",
    )
