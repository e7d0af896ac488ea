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
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.architectures import family_of
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.config import FlareConfig
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.layer import (
    ADAPTER,
    FlareLinear,
    FusedBlock,
    FusedCache,
    FusionError,
    swap,
    swap_back,
)
from lingualift.fusion.passes import UNFUSED, Fused, SourcePass, SourcePassDone, Span, running, span_of
from lingualift.fusion.places import block_of, find_places
from lingualift.provenance import write_json, writing

SOURCE = "source_"
"""What names of the source side's inputs begin with."""


class FlareModel(peft.PeftModel):  # type: ignore[misc]
    """A backbone with a FLARE adapter; `flare` and `load_flare` make it.

    It is a model of peft's, so that what trains, saves and wraps those (Trainer, accelerate, DDP) takes it. Where the
    backbone takes `input_ids` and `attention_mask`, it takes `source_input_ids` and `source_attention_mask` beside
    them (b, m): the same b texts in the source language, padded on either side; m and n differ as they like.

    Attributes:
        flare_config: Its configuration.
    """

    def __init__(self, backbone: Any, config: FlareConfig) -> None:
        _check_free(backbone)
        places = find_places(backbone, config)
        _check_settings(backbone, config, [block_of(path) for path in places.fused])
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="|".join(map(re.escape, places.adapted)),
            modules_to_save=list(config.modules_to_save) if config.modules_to_save else None,
        )
        lora._register_custom_module({torch.nn.Linear: FlareLinear})
        super().__init__(backbone, lora, ADAPTER)
        self.flare_config = config
        self._causal = family_of(backbone.config) == "decoder"
        self._off = False
        fusion = FUSIONS[config.fusion]
        by_projection = config.source_state == "projection-input"
        for path in places.fused:
            key = path if by_projection else block_of(path)
            backbone.get_submodule(path).fuse_by(fusion, path, key)
        for path in {block_of(path) for path in places.fused}:
            block = backbone.get_submodule(path)
            if not isinstance(block, FusedBlock):
                swap(block, FusedBlock)
            block.flare_path, block.flare_index = path, int(path.rsplit(".", 1)[-1])
        self._wanted = frozenset(path if by_projection else block_of(path) for path in places.fused)

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
        labels: Tensor | None = None,
        answer_start: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """The backbone's output for the target, fused with the source.

        Args:
            input_ids: Target tokens (b, n).
            attention_mask: 1 for real target tokens, 0 for padding (b, n); None where all are real.
            source_input_ids: Source tokens (b, m). They must not contain the answer. None while fusion is off, and
                for further tokens with a cache that a fused pass has filled.
            source_attention_mask: 1 for real source tokens (b, m); None where all are real.
            labels: As the backbone takes them.
            answer_start: Position (b,) of every row of a decoder at which the answer starts; None for where `labels`
                start, or for no answer without them.
            more: What else the backbone takes; names that begin with `source_` go to the source pass.

        Raises:
            UserError: unequal numbers of rows, or a source without a token.
            FusionError: there is no source.
        """
        theirs = {key: more.pop(key) for key in list(more) if key.startswith(SOURCE)}
        if source_input_ids is not None:
            theirs.update(source_input_ids=source_input_ids, source_attention_mask=source_attention_mask)
        size = more["inputs_embeds"].shape[:2] if input_ids is None and "inputs_embeds" in more else None
        if self._causal and answer_start is None and labels is not None and labels.dim() == 2:
            answer_start = _first_label(labels)
        this = self._pass(input_ids, size, attention_mask, theirs, answer_start, more)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **more}
        with running(this):
            return self.get_base_model()(**{key: value for key, value in given.items() if value is not None})

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Answers to target prompts, fused with the source; arguments as for `forward` and transformers' `generate`.

        Decoders want their prompts padded on the left, as always.
        """
        theirs = {key: more.pop(key) for key in list(more) if key.startswith(SOURCE)}
        if source_input_ids is not None:
            theirs.update(source_input_ids=source_input_ids, source_attention_mask=source_attention_mask)
        with torch.no_grad():
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
            mask = torch.ones(shape, dtype=torch.long, device=theirs["source_input_ids"].device)
        return self._fused(mask, theirs, answer_start, more)

    def _fused(
        self, mask: Tensor, theirs: dict[str, Any], answer_start: Tensor | None, more: Mapping[str, Any]
    ) -> Fused:
        ids = theirs.pop("source_input_ids")
        source_mask = theirs.pop("source_attention_mask", None)
        source_mask = torch.ones_like(ids) if source_mask is None else source_mask
        if len(ids) != len(mask):
            raise UserError(
                "source_input_ids", f"{len(ids)} rows", f"{len(mask)}, one for each target row", "pair the rows"
            )
        if not bool(source_mask.any(1).all()):
            raise UserError(
                "source_attention_mask", "a row without a token", "a source for each row", "translate it"
            )
        target = span_of(mask, answer_start)
        prompt_end = None
        if self._causal and self.flare_config.answer_source == "generate":
            tokens = _answer_tokens(target, more)
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
        )

    @torch.no_grad()
    def source_states(
        self, source_input_ids: Tensor, source_attention_mask: Tensor, **more: Any
    ) -> dict[str, Tensor]:
        """States (b, m, width) of source tokens (b, m) by block or projection, from the backbone without the adapter.

        Dropout is off, nothing after the last fused block is computed, and no gradient is kept.
        """
        backbone = self.get_base_model()
        given = {key.removeprefix(SOURCE): value for key, value in more.items()}
        encoder_decoder = family_of(backbone.config) == "encoder-decoder"
        model = backbone.get_encoder() if encoder_decoder else backbone.base_model
        if self._causal:
            given["use_cache"] = False
            given.setdefault("position_ids", (source_attention_mask.cumsum(1) - 1).clamp(min=0))
        this = SourcePass(self._wanted, self.flare_config.source_state)
        with running(this), _at_rest(backbone):
            try:
                model(input_ids=source_input_ids, attention_mask=source_attention_mask, **given)
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

    def save_pretrained(  # noqa: D417 - what peft's method takes beside is told there
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
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".flare.", dir=folder) as scratch:
                save_file(tensors, Path(scratch) / WEIGHTS_FILE, metadata={"format": "pt"})
                (Path(scratch) / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
        name = getattr(self.get_base_model(), "name_or_path", "") or None
        write_json(folder / CONFIG_FILE, {**self.flare_config.to_dict(), "base_model_name_or_path": name})

    def load_adapter(
        self, model_id: str | Path, adapter_name: str = ADAPTER, is_trainable: bool = False, **_: Any
    ) -> Any:
        """Load the tensors of a folder that `save_pretrained` wrote, each into its place.

        Raises:
            UserError: an adapter of another configuration, damaged, or made for another backbone.
        """
        folder = Path(model_id)
        config = FlareConfig.from_folder(folder)
        if config.to_dict() != self.flare_config.to_dict():
            raise UserError(folder, "has another configuration", "this model's", "use load_flare")
        _fill(self._tensors(), folder)
        if not is_trainable:
            for key, parameter in self.named_parameters():
                if "lora_" in key or f".modules_to_save.{ADAPTER}." in key:
                    parameter.requires_grad_(False)
            self.eval()

    def unload(self) -> Any:
        """Take the adapter off.

        Returns:
            The backbone as it was.
        """
        for module in self.modules():
            swap_back(module, FusedBlock)
        return self.base_model.unload()

    def _tensors(self, state_dict: Any = None) -> dict[str, Tensor]:
        """The adapter's tensors by peft's names; they share memory with the model."""
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(
            self, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False
        )
        return found


def flare(backbone: Any, config: FlareConfig) -> FlareModel:
    """Put a new FLARE adapter on a backbone, which is changed in place; draw its start by torch's seed.

    Args:
        backbone: A model of transformers: decoder, encoder or encoder-decoder.
        config: What adapter.

    Raises:
        UserError: a module name that matches nothing, or a backbone that cannot take it.
    """
    return FlareModel(backbone, config)


def load_flare(backbone: Any, folder: str | Path, *, is_trainable: bool = False) -> FlareModel:
    """Put a saved FLARE adapter on a backbone, which is changed in place.

    Args:
        backbone: The model that it was trained on.
        folder: What `save_pretrained` wrote.
        is_trainable: Whether it is to be trained further.

    Raises:
        UserError: no FLARE adapter, damaged, or made for another backbone.
    """
    model = flare(backbone, FlareConfig.from_folder(Path(folder)))
    try:
        model.load_adapter(folder, is_trainable=is_trainable)
    except UserError:
        model.unload()
        raise
    return model


def _check_free(backbone: Any) -> None:
    """Check that no adapter is on the backbone."""
    if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        raise UserError(
            "backbone", "holds an adapter already", "a backbone alone", "merge it into the backbone first"
        )


def _check_settings(backbone: Any, config: FlareConfig, blocks: list[str]) -> None:
    """Check what a configuration asks of a backbone, beside its places."""
    for path in blocks:
        if "forward" in vars(backbone.get_submodule(path)):
            raise UserError(
                "backbone",
                f"{path} runs through hooks of accelerate's (several devices, or offloading)",
                "a backbone on one device",
                "load it without device_map, or with all of it on one device",
            )
    if family_of(backbone.config) != "decoder" and config.answer_source != "last":
        raise UserError(
            "answer_source",
            f"{config.answer_source!r} means nothing here: no answer stands behind an encoder's text",
            "'last', the default",
            "leave it out",
        )
    for name in config.modules_to_save or ():
        names = {path.rsplit(".", 1)[-1] for path, _ in backbone.named_modules()}
        if name.rsplit(".", 1)[-1] not in names:
            raise UserError("modules_to_save", f"{name!r} matches no module", mend=did_you_mean(name, names))


def _fill(own: dict[str, Tensor], folder: Path) -> None:
    """Copy a folder's tensors into a model's.

    Raises:
        UserError: one is missing, too many, of another shape, or not finite; the model is as it was then.
    """
    path = folder / WEIGHTS_FILE
    try:
        theirs = load_file(path)
    except Exception as error:
        raise UserError(path, f"cannot be read ({error})", "tensors", "save the adapter again") from None
    problems = [f"{key} is missing" for key in sorted(own.keys() - theirs.keys())]
    problems += [f"{key} is none of the adapter's" for key in sorted(theirs.keys() - own.keys())]
    for key in own.keys() & theirs.keys():
        if own[key].shape != theirs[key].shape:
            problems.append(f"{key} is {tuple(theirs[key].shape)}, not {tuple(own[key].shape)}")
        elif not bool(torch.isfinite(theirs[key]).all()):
            problems.append(f"{key} is not finite")
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            path, problems[0] + more, "an adapter of this backbone", "name another backbone or adapter"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(theirs[key])


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


def _first_label(labels: Tensor) -> Tensor:
    """Where the labels of every row (b, n) start, (b,); behind the row where it has none."""
    given = labels != -100
    return torch.where(given.any(1), given.int().argmax(1), labels.shape[1])


def _answer_tokens(target: Span, more: Mapping[str, Any]) -> int:
    """How many tokens the source side is to generate: as many as the target's answers have, or may have."""
    if "max_new_tokens" in more:
        return int(more["max_new_tokens"])
    settings = more.get("generation_config")
    if settings is not None and settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    return int((target.end - target.prompt_end).max())
