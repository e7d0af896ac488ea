"""The adapter of the first stage, kept frozen beside a FLARE adapter where it cannot be merged without loss (NF4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import WEIGHTS_FILE, Adapter, open_adapter
from lingualift.errors import UserError
from lingualift.provenance import write_json

_NAME = "first_stage"


class Factors(torch.nn.Module):  # type: ignore[misc]
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


def _add(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + layer.get_submodule(_NAME)(given[0]).to(output.dtype)
