"""The source side of a FLARE model: whose states they are, and how they are read, answered and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingualift.backbone.architectures import family_of
from lingualift.errors import UserError
from lingualift.fusion.cache import SourceCache, model_fingerprint, open_or_make
from lingualift.fusion.checks import check_length
from lingualift.fusion.config import FlareConfig
from lingualift.fusion.passes import FusionError, SourcePass, SourcePassDone, running

ENCODER = "source_encoder"
"""Key of the states of a source encoder, which all fused layers meet."""

SOURCE = "source_"
"""What names of the source side's inputs begin with."""


class SourceReader:
    """What of a FLARE model reads the source; mixed into it.

    Attributes:
        flare_config: Its configuration.
        source_encoder: The translation model's encoder, frozen; None where the backbone reads the source.
        source_cache: Source states on disk, or None.
    """

    flare_config: FlareConfig
    source_encoder: Any
    source_cache: SourceCache | None
    get_base_model: Callable[[], Any]
    _wanted: frozenset[str]
    _causal: bool

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
        backbone = self.get_base_model()
        reader = backbone if self.source_encoder is None else self.source_encoder
        for row in rows:
            check_length("source rows", len(row), reader.config)
        config = self.flare_config
        places = [] if self.source_encoder is not None else [config.source_state, *sorted(self._wanted)]
        about = {"weights": model_fingerprint(self._reads()), "places": places}
        pad = reader.config.get_text_config().pad_token_id or 0

        def states_of(batch: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Tensor]:
            longest = max(map(len, batch))
            ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            ids, mask = ids.to(backbone.device), mask.to(backbone.device)
            return self.source_states(ids, mask), mask

        self.source_cache = open_or_make(Path(folder), rows, about, states_of, batch_size, tell)
        return self.source_cache

    def _reads(self) -> Any:
        """The stack of blocks that reads the source."""
        if self.source_encoder is not None:
            return self.source_encoder
        return stack_of(self.get_base_model())

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def source_states(
        self, source_input_ids: Tensor, source_attention_mask: Tensor, **more: Any
    ) -> dict[str, Tensor]:
        """States (b, m, width) of source tokens (b, m) by block or projection, from the backbone without the adapter.

        Dropout is off, nothing after the last fused block is computed, and no gradient is kept.
        """
        model = self._reads()
        given = source_inputs(
            source_input_ids, source_attention_mask, more, self._causal and self.source_encoder is None
        )
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

    @torch.no_grad()  # type: ignore[untyped-decorator]
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
            raise UserError(
                "source_rows", f"{len(rows)} rows", f"{len(mask)}, one for each target row", "pair the rows"
            )
        return self.source_cache.read(rows, mask.device, self.get_base_model().dtype)


def stack_of(backbone: Any) -> Any:
    """The stack of blocks of a backbone that reads a text: of an encoder-decoder its encoder."""
    return backbone.get_encoder() if family_of(backbone.config) == "encoder-decoder" else backbone.base_model


def source_inputs(ids: Tensor, mask: Tensor, more: Mapping[str, Any], causal: bool) -> dict[str, Any]:
    """What the model that reads the source is given, by its own names; `more` has the source's."""
    given = {key.removeprefix(SOURCE): value for key, value in more.items()}
    given.update(input_ids=ids, attention_mask=mask)
    if causal:
        given["use_cache"] = False
        given.setdefault("position_ids", (mask.cumsum(1) - 1).clamp(min=0))
    return given


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
