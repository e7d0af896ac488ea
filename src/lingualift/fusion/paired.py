"""What every model of two texts does, however they meet: it takes both, answers, and keeps the adapter in a folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.backbone.architectures import family_of, positions_of
from lingualift.backbone.loading import read_in_order
from lingualift.backbone.original import remembered
from lingualift.errors import UserError
from lingualift.fusion.config import FusionConfig, Places
from lingualift.fusion.layer import ADAPTER
from lingualift.fusion.passes import SOURCE, UNFUSED, FusedCache, FusionError, Meeting, running
from lingualift.fusion.start import FirstStage, fill, find_first_stage, places_in
from lingualift.fusion.translator import Translator
from lingualift.provenance import sha256_file, write_json, writing


class PairedModel(peft.PeftModel):  # type: ignore[misc]
    """A backbone with an adapter that reads a source side.

    It is a model of peft's, so that what trains, saves and wraps those (Trainer, accelerate, DDP) takes it.

    Attributes:
        beside: Name of the module that is trained and saved beside LoRA.
        fusion_config: Its configuration.
        source_encoder: Another model's encoder that reads the source; None where the backbone does.
        translator: What reads the rows' own text for that encoder; None without it, and where it was passed as a model.
    """

    beside: ClassVar[str]
    fusion_config: FusionConfig
    source_encoder: Any
    _places: Places
    translator: Translator | None = None

    def __init__(
        self,
        backbone: Any,
        config: FusionConfig,
        first_stage: Path | str | None,
        layers: Mapping[type, type] | None = None,
    ) -> None:
        """Put LoRA on layers of a backbone, of peft's classes or those that `layers` has."""
        places = places_in(backbone, config)
        heads = list(config.modules_to_save or ())
        before = None if first_stage is None else FirstStage.read(first_stage, backbone, heads)
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="|".join(map(re.escape, places.adapted)),
            modules_to_save=heads or None,
        )
        if layers:
            lora._register_custom_module(layers)
        with remembered(backbone) as original:
            super().__init__(backbone, lora, ADAPTER)
            read_in_order(backbone)  # a caller's own backbone does not yet
            if before is not None:
                before.attach(backbone)
                before.begin(backbone)
            original.watch(self)
        self._first_stage = before
        self.fusion_config, self.source_encoder, self._places = config, None, places
        self._causal = family_of(backbone.config) == "decoder"
        self._off = False

    @classmethod
    def load(
        cls, backbone: Any, config: FusionConfig, folder: str | Path, *, is_trainable: bool, **more: Any
    ) -> Self:
        """Put the adapter of a folder on a backbone, beside its first stage.

        Args:
            backbone: The model that it was trained on.
            config: The folder's.
            folder: What `save_pretrained` wrote.
            is_trainable: Whether it is to be trained further.
            more: What else the model is made of.

        Raises:
            UserError: damaged, or made for another backbone; the backbone is as it was then.
        """
        model = cls(backbone, config, first_stage=find_first_stage(Path(folder)), **more)
        try:
            model.load_adapter(folder, is_trainable=is_trainable)
        except UserError:
            model.unload()
            raise
        return model

    @contextmanager
    def fusion_off(self) -> Iterator[None]:
        """Within it, the model is plain LoRA: the source is not read, and need not be given."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        source_rows: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """The output of an encoder-decoder's encoder for the target, fused with the source; arguments as for `forward`.

        `forward` takes it as `encoder_outputs`, and then reads no source.
        """
        theirs = source_of(more, source_input_ids, source_attention_mask, source_rows)
        with running(self._pass(input_ids, None, attention_mask, theirs, None, more)):
            return self.get_base_model().get_encoder()(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more
            )

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        source_rows: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Answers to target prompts, fused with the source; arguments as for `forward` and transformers' `generate`.

        Decoders want their prompts padded on the left, as always.
        """
        theirs = source_of(more, source_input_ids, source_attention_mask, source_rows)
        with torch.no_grad():
            if theirs and not self._off:
                more = self._generating(input_ids, more)
            this = self._pass(input_ids, None, attention_mask, theirs, None, more)
            with running(this):
                return self.get_base_model().generate(
                    input_ids=input_ids, attention_mask=attention_mask, **more
                )

    def _generating(self, input_ids: Tensor, more: dict[str, Any]) -> dict[str, Any]:
        """What `generate` is given beside the texts."""
        return more

    def _pass(
        self,
        input_ids: Tensor | None,
        size: tuple[int, int] | None,
        mask: Tensor | None,
        theirs: dict[str, Any],
        answer_start: Tensor | None,
        more: Mapping[str, Any],
    ) -> Any:
        """What this pass of the target meets."""
        if self._off:
            return UNFUSED
        cache = more.get("past_key_values")
        if self._causal and cache is not None and cache.get_seq_length():
            if not isinstance(cache, FusedCache):
                raise FusionError("the cache was not filled by the fused model: start without one")
            if theirs:
                raise FusionError("the cache holds its source: give it once, with the prompt")
            return cache.flare_pass
        if not theirs:
            return None
        if mask is None:
            shape = size if input_ids is None else input_ids.shape
            if shape is None:
                return None  # an encoder-decoder whose encoder has run
            mask = torch.ones(shape, dtype=torch.long, device=next(iter(theirs.values())).device)
        return self._fused(mask, theirs, answer_start, more)

    def _fused(
        self, mask: Tensor, theirs: dict[str, Any], answer_start: Tensor | None, more: Mapping[str, Any]
    ) -> Meeting:
        """A pass of the target, by its mask (b, n), that meets what is given of the source."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, state_dict: Any = None, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write the adapter: `adapter_config.json`, of a type that plain peft refuses, and its tensors.

        Args:
            save_directory: The folder; files of an earlier state there are replaced.
            state_dict: The model's state, where it is gathered from several processes.
            is_main_process: Whether this process writes.

        Raises:
            UserError: it cannot be written.
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self._tensors(state_dict).items()}
        more = {"base_model_name_or_path": getattr(self.get_base_model(), "name_or_path", "") or None}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".flare.", dir=folder) as scratch:
                save_file(tensors, Path(scratch) / WEIGHTS_FILE, metadata={"format": "pt"})
                (Path(scratch) / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
            if self._first_stage is not None:
                self._first_stage.save(folder / FIRST_STAGE)
                more[FIRST_STAGE] = sha256_file(folder / FIRST_STAGE / WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, {**self.fusion_config.to_dict(), **more})

    def load_adapter(
        self, model_id: str | Path, adapter_name: str = ADAPTER, is_trainable: bool = False, **_: Any
    ) -> None:
        """Load the tensors of a folder that `save_pretrained` wrote, each into its place.

        A Trainer that goes on from a checkpoint asks for the first stage too, which is frozen and in its place already.

        Raises:
            UserError: an adapter of another configuration, damaged, or made for another backbone.
        """
        if adapter_name == FIRST_STAGE:
            return
        folder = Path(model_id)
        config = type(self.fusion_config).from_folder(folder)
        if config.to_dict() != self.fusion_config.to_dict():
            mend = "load it anew (load_flare, load_mixup)"
            raise UserError(folder, "has another configuration", "this model's", mend)
        fill(self._tensors(), folder)
        if not is_trainable:
            for key, parameter in self.named_parameters():
                if "lora_" in key or self._beside(key) or f".modules_to_save.{ADAPTER}." in key:
                    parameter.requires_grad_(False)
            self.eval()

    def unload(self) -> Any:
        """Take the adapter off.

        Returns:
            The backbone as it was, to the last byte.
        """
        backbone = self.get_base_model()
        self.original.restore()
        return backbone

    def _tensors(self, state_dict: Any = None) -> dict[str, Tensor]:
        """The adapter's tensors by peft's names; they share memory with the model."""
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(
            self, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False
        )
        whole = self.state_dict() if state_dict is None else state_dict
        return found | {key: value for key, value in whole.items() if self._beside(key)}

    def _beside(self, key: str) -> bool:
        """Whether a tensor is of the module that is trained beside LoRA."""
        return key.startswith(f"{self.beside}.")


def source_of(
    more: dict[str, Any], ids: Tensor | None, mask: Tensor | None, rows: Tensor | None
) -> dict[str, Any]:
    """What is given of the source; taken out of `more`.

    Raises:
        UserError: both tokens and rows of the cache.
    """
    theirs = {key: more.pop(key) for key in list(more) if key.startswith(SOURCE)}
    if ids is not None and rows is not None:
        raise UserError("source_rows", "source_input_ids are given too", "one of them", "leave one out")
    if rows is not None:
        return {"source_rows": rows}
    return theirs if ids is None else {"source_input_ids": ids, "source_attention_mask": mask, **theirs}


def first_label(labels: Tensor, mask: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Where the answers of rows of so many tokens start, (b,); behind a row that has no label.

    Labels (b, k) may be those of the last k tokens alone, as with `logits_to_keep`.

    Raises:
        UserError: a row whose first token has a label, so that it has no prompt.
    """
    given = labels != -100
    first = torch.where(given.any(1), given.int().argmax(1), labels.shape[1]) + shape[1] - labels.shape[1]
    start = torch.zeros_like(first) if mask is None else mask.bool().int().argmax(1).to(first.device)
    if bool((first <= start).any()):
        raise UserError(
            "labels",
            "a row is an answer from its first token on, which leaves no prompt to meet the source",
            "-100 where the prompt is",
            "mask the prompt's labels, or pass answer_start",
        )
    return first


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
