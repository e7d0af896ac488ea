"""A backbone with a FLARE adapter: two texts in, one answer out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.architectures import family_of
from lingualift.attachment import take_off
from lingualift.errors import UserError
from lingualift.fusion import stage
from lingualift.fusion.checks import check_backbone, check_encoder, check_free, check_source
from lingualift.fusion.config import FlareConfig
from lingualift.fusion.folder import fill, find_first_stage
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.inputs import answer_tokens, first_label, new_tokens, source_of
from lingualift.fusion.layer import (
    ADAPTER,
    FlareLinear,
    FusedBlock,
    FusedCache,
    FusionError,
    swap,
    swap_back,
)
from lingualift.fusion.passes import UNFUSED, Fused, running, span_of
from lingualift.fusion.places import block_of, find_places
from lingualift.fusion.reading import ENCODER, SourceReader
from lingualift.fusion.stage import FirstStage
from lingualift.fusion.translator import Translator
from lingualift.provenance import sha256_file, write_json, writing


class FlareModel(SourceReader, peft.PeftModel):  # type: ignore[misc]
    """A backbone with a FLARE adapter; `flare` and `load_flare` make it.

    It is a model of peft's, so that what trains, saves and wraps those (Trainer, accelerate, DDP) takes it. Where the
    backbone takes `input_ids` and `attention_mask`, it takes `source_input_ids` and `source_attention_mask` beside
    them (b, m): the same b texts in the source language, padded on either side; m and n differ as they like.

    With a source encoder (FLARE-MT), `source_input_ids` are that encoder's: the target texts, as `source_ids` makes
    them. With a cache (`cache_sources`), `source_rows` (b,) stand for `source_input_ids`.

    Attributes:
        flare_config: Its configuration.
        source_encoder: The translation model's encoder, frozen; None where the backbone reads the source.
        flare_projection: From that encoder's width to the backbone's, trained; None without it.
        source_cache: Source states on disk, or None.
        translator: What reads the rows' own text for the source encoder; None without it, and where it was passed
            as a model.
    """

    translator: Translator | None = None

    def __init__(
        self,
        backbone: Any,
        config: FlareConfig,
        source_encoder: Any = None,
        first_stage: Path | str | None = None,
    ) -> None:
        check_encoder(source_encoder, config)
        check_free(backbone)
        before = (
            None
            if first_stage is None
            else FirstStage.read(first_stage, backbone, config.modules_to_save or ())
        )
        places = find_places(backbone, config)
        check_backbone(backbone, config, places.fused)
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="|".join(map(re.escape, places.adapted)),
            modules_to_save=list(config.modules_to_save) if config.modules_to_save else None,
        )
        lora._register_custom_module({torch.nn.Linear: FlareLinear})
        super().__init__(backbone, lora, ADAPTER)
        self._first_stage = before
        self._first_stage_hooks = []
        if before is not None:
            self._first_stage_hooks = before.attach(backbone)
            before.begin(backbone)
        self.flare_config = config
        self._causal = family_of(backbone.config) == "decoder"
        self._off = False
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
        self.source_cache = None
        self.source_encoder = self.flare_projection = None
        if source_encoder is not None:
            self.source_encoder = source_encoder.get_encoder().requires_grad_(False)
            A = backbone.get_submodule(places.fused[0]).lora_A[ADAPTER]
            width = self.source_encoder.config.get_text_config().hidden_size
            self.flare_projection = torch.nn.Linear(width, A.in_features).to(A.weight.device, A.weight.dtype)

    @contextmanager
    def fusion_off(self) -> Iterator[None]:
        """Within it, the model is plain LoRA: the source is not read, and need not be given."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

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
            if self.flare_config.answer_source == "generate" and theirs and not self._off:
                more.setdefault(
                    "max_new_tokens",
                    new_tokens(input_ids.shape[1], more, self.get_base_model().generation_config),
                )
            this = self._pass(input_ids, None, attention_mask, theirs, None, more)
            with running(this):
                return self.get_base_model().generate(
                    input_ids=input_ids, attention_mask=attention_mask, **more
                )

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
        write_json(folder / CONFIG_FILE, {**self.flare_config.to_dict(), **more})

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
        config = FlareConfig.from_folder(folder)
        if config.to_dict() != self.flare_config.to_dict():
            raise UserError(folder, "has another configuration", "this model's", "use load_flare")
        fill(self._tensors(), folder)
        if not is_trainable:
            for key, parameter in self.named_parameters():
                if (
                    "lora_" in key
                    or key.startswith("flare_projection.")
                    or f".modules_to_save.{ADAPTER}." in key
                ):
                    parameter.requires_grad_(False)
            self.eval()

    def unload(self) -> Any:
        """Take the adapter off.

        Returns:
            The backbone as it was.
        """
        for module in self.modules():
            swap_back(module, FusedBlock)
        stage.detach(self._first_stage_hooks)
        backbone = self.get_base_model()
        take_off(backbone)
        return backbone

    def _tensors(self, state_dict: Any = None) -> dict[str, Tensor]:
        """The adapter's tensors by peft's names; they share memory with the model."""
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(
            self, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False
        )
        if self.flare_projection is not None:
            whole = self.state_dict() if state_dict is None else state_dict
            found |= {key: value for key, value in whole.items() if key.startswith("flare_projection.")}
        return found


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
    first_stage = find_first_stage(Path(folder))
    model = flare(backbone, config, source_encoder=source_encoder, first_stage=first_stage)
    try:
        model.load_adapter(folder, is_trainable=is_trainable)
    except UserError:
        model.unload()
        raise
    return model


def _key(config: FlareConfig, path: str) -> str:
    """Name of the source states that a fused layer meets."""
    if config.source_encoder is not None:
        return ENCODER
    return path if config.source_state == "projection-input" else block_of(path)
