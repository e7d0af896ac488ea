"""What every model of two texts does, however they meet: it takes both, answers, and keeps the adapter in a folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.backbone.architectures import family_of
from lingualift.backbone.loading import read_in_order
from lingualift.backbone.original import remembered
from lingualift.errors import UserError
from lingualift.fusion.config import FusionConfig
from lingualift.fusion.folder import fill, find_first_stage
from lingualift.fusion.inputs import source_of
from lingualift.fusion.layer import ADAPTER
from lingualift.fusion.passes import UNFUSED, FusedCache, FusionError, Meeting, running
from lingualift.fusion.stage import FirstStage
from lingualift.fusion.translator import Translator
from lingualift.provenance import sha256_file, write_json, writing

Model = TypeVar("Model", bound="PairedModel")


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
    translator: Translator | None = None

    def __init__(
        self,
        backbone: Any,
        config: FusionConfig,
        adapted: Sequence[str],
        first_stage: Path | str | None,
        layers: Mapping[type, type] | None = None,
    ) -> None:
        """Put LoRA on layers of a backbone (`adapted`, by path), of peft's classes or those that `layers` has."""
        heads = list(config.modules_to_save or ())
        before = None if first_stage is None else FirstStage.read(first_stage, backbone, heads)
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="|".join(map(re.escape, adapted)),
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
        self.fusion_config, self.source_encoder = config, None
        self._causal = family_of(backbone.config) == "decoder"
        self._off = False

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


def loaded(put_on: Callable[[Path | None], Model], folder: str | Path, *, is_trainable: bool) -> Model:
    """A model with the tensors of a folder.

    Args:
        put_on: Puts a new adapter of the folder's configuration on the backbone, beside a first stage.
        folder: What `save_pretrained` wrote.
        is_trainable: Whether it is to be trained further.

    Raises:
        UserError: damaged, or made for another backbone; the backbone is as it was then.
    """
    model = put_on(find_first_stage(Path(folder)))
    try:
        model.load_adapter(folder, is_trainable=is_trainable)
    except UserError:
        model.unload()
        raise
    return model
