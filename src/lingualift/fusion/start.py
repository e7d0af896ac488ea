"""What a fused adapter begins from: a backbone that fits it, the adapter of stage 1, and the tensors of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE, Adapter, open_adapter
from lingualift.adapters.targets import check_sizes
from lingualift.backbone.architectures import blocks, family_of
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.config import FlareConfig, FusionConfig, Places
from lingualift.provenance import read_json, sha256_file, write_json

_NAME = "first_stage"


class Factors(torch.nn.Module):
    """LoRA's factors of one layer: A (rank, inputs), B (outputs, rank), and the scaling of B·A."""

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor, scaling: float) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self.scaling = scaling

    def forward(self, states: Tensor) -> Tensor:
        """What they add to the layer's output for `states` (…, inputs)."""
        linear = torch.nn.functional.linear
        return linear(linear(states.to(self.down.dtype), self.down), self.up) * self.scaling


@dataclass(frozen=True)
class FirstStage:
    """A LoRA adapter, read.

    Attributes:
        config: Its `adapter_config.json`.
        factors: The factors by path of the backbone's layer.
        head: Weights of an encoder's head by path, which the FLARE adapter's begins from.
    """

    config: Mapping[str, Any]
    factors: Mapping[str, Factors]
    head: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path | str, backbone: Any, heads: Sequence[str] = ()) -> FirstStage:
        """Read an adapter for a backbone.

        Args:
            folder: Its folder.
            backbone: The model, without an adapter.
            heads: Names of the modules that are trained whole, and may begin from it.

        Raises:
            UserError: no plain LoRA adapter, damaged, or none of this backbone's.
        """
        adapter = open_adapter(folder)
        adapter.verify()
        if adapter.kind != "lora":
            raise UserError(
                adapter.path, f"is {adapter.kind}", "a LoRA adapter", "train the first stage by LoRA"
            )
        head = _head(adapter, backbone, heads)
        factors = {}
        for path, module in adapter.modules.items():
            layer = dict(backbone.named_modules()).get(path)
            found = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
            if module.bias:
                mend = "train the first stage without lora_bias"
                raise UserError(
                    adapter.path, f"holds {module.bias} (lora_bias)", "lora_A and lora_B alone", mend
                )
            if module.form != "linear" or found != module.fits:
                raise UserError(
                    adapter.path,
                    f"{path} is {module.form}, {module.fits}",
                    "a linear layer of the backbone's, of the same size",
                    "name an adapter of this backbone",
                )
            down, up = (torch.from_numpy(adapter.read(name).astype(np.float32)) for name in module.tensors)
            factors[path] = Factors(down, up, module.scaling)
        return cls({**adapter.config, "modules_to_save": None}, factors, head)

    def attach(self, backbone: Any) -> None:
        """Let the backbone's layers add what the factors give."""
        for path, factors in self.factors.items():
            layer = backbone.get_submodule(path)
            layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            layer.add_module(_NAME, factors.to(layer.weight.device))
            layer.register_forward_hook(_add)

    def begin(self, model: Any) -> None:
        """Let the head that is trained with an adapter begin from this one's."""
        own = {
            key.replace(".modules_to_save.default.", "."): value for key, value in model.named_parameters()
        }
        with torch.no_grad():
            for path, tensor in self.head.items():
                own[path].copy_(tensor)

    def save(self, folder: Path) -> None:
        """Write it as an adapter folder of peft's."""
        folder.mkdir(exist_ok=True)
        tensors = {}
        for path, factors in self.factors.items():
            for name, tensor in (("A", factors.down), ("B", factors.up)):
                tensors[f"base_model.model.{path}.lora_{name}.weight"] = tensor.cpu().contiguous()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, dict(self.config))


def _head(adapter: Adapter, backbone: Any, heads: Sequence[str]) -> dict[str, Tensor]:
    """The whole weights of an adapter, by path in the backbone; all of the modules that begin from it, or none."""
    found = {name.removeprefix("base_model.model."): name for name in adapter.structure.whole}
    for path, name in found.items():
        if not any(part in heads for part in path.split(".")):
            raise UserError(
                adapter.path,
                f"holds {name} beside LoRA's factors",
                "factors, and the head that is trained further (modules_to_save)",
                "put other whole weights (biases, another head) into the backbone before",
            )
    wanted = {
        path: weight.shape
        for path, weight in backbone.named_parameters()
        if found and any(part in heads for part in path.split("."))
    }
    shapes = {path: adapter.tensors[name].shape for path, name in found.items()}
    for path in sorted(wanted.keys() | shapes.keys()):
        theirs, ours = (tuple(each[path]) if path in each else "none" for each in (shapes, wanted))
        if theirs != ours:
            raise UserError(
                adapter.path,
                f"its {path} is {theirs}",
                f"{ours}, as the backbone's head",
                "name an adapter that was trained on this task",
            )
    return {path: torch.from_numpy(adapter.read(name).astype(np.float32)) for path, name in found.items()}


def _add(layer: torch.nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.get_submodule(_NAME)(given[0])
    return output + added.to(output.dtype)


def find_first_stage(folder: Path) -> Path | None:
    """The first stage in an adapter's folder, which must be the one that it was saved with; None if it has none.

    Raises:
        UserError: it is missing, or another; the adapter is not the one that its provenance recorded.
    """
    adapter = open_adapter(folder)
    adapter.verify()
    check_sizes(adapter)
    place = folder / FIRST_STAGE
    recorded = read_json(folder / CONFIG_FILE).get(FIRST_STAGE)
    found = sha256_file(place / WEIGHTS_FILE) if (place / WEIGHTS_FILE).is_file() else None
    if found != recorded:
        raise UserError(
            place,
            "is not there"
            if found is None
            else f"is not the one that the adapter was saved with (sha256 {found})",
            "no first stage" if recorded is None else f"the first stage of sha256 {recorded}",
            "restore the adapter from its source, the folder in it too",
        )
    return None if found is None else place


def fill(own: dict[str, Tensor], folder: Path) -> None:
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


def places_in(backbone: Any, config: FusionConfig) -> Places:
    """The layers of a backbone that an adapter takes.

    Raises:
        UserError: the backbone holds an adapter, is spread over devices, or cannot do what is asked.
    """
    if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        raise UserError(
            "backbone", "holds an adapter already", "a backbone alone", "merge it into the backbone first"
        )

    places = config.places(backbone)
    for path in places.blocks:
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
    return places


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
