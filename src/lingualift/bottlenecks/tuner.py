"""Bottleneck adapters as a kind of peft's, under a name that plain peft does not know.

Each replaces the output f of a sub-layer by f + s·(U·act(D·x + b_D) + b_U), where x is the sum that the backbone makes
of f and the stream r, normed where it norms it (Pfeiffer, https://arxiv.org/abs/2005.00052), f itself (Houlsby,
https://arxiv.org/abs/1902.00751), or r (parallel, https://arxiv.org/abs/2110.04366).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN
from typing_extensions import override

from lingualift.adapters.config import BOTTLENECK
from lingualift.bottlenecks.sites import Site, sites


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]  # peft has no types
    """What a bottleneck adapter is.

    Attributes:
        placement: Where it stands and what it reads.
        size: Width of the bottleneck.
        activation: Name of the function in it, of transformers' `ACT2FN`.
        scaling: Factor of what it adds.
        leave_out: Blocks that get none, those of a decoder after those of the encoder.
        last_norm: Whether Pfeiffer's reads the last block's norm in all blocks, as `adapters` does in Gemma 2 and 3.
        target_modules: Where it stands, filled in when it is put on a model.
        modules_to_save: Modules that are trained whole and saved with it (an encoder's head).
    """

    placement: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    size: int = 48
    activation: str = "relu"
    scaling: float = 1.0
    leave_out: list[int] = field(default_factory=list)
    last_norm: bool = False
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK

    def places(self, model: Any) -> list[Site]:
        """Its places in a model.

        Raises:
            UserError: a model whose sub-layers are not recognised.
        """
        wanted = ("attention", "feed-forward") if self.placement == "houlsby" else ("feed-forward",)
        return [site for site in sites(model) if site.place in wanted and site.block not in self.leave_out]


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """The end of a sub-layer with bottlenecks on it.

    Attributes:
        bottleneck_down: The way down of each adapter, from the width to its size.
        bottleneck_up: The way up.
        stream: r of the pass that is running.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("configs",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, width: int
    ) -> None:
        super().__init__()
        self.base_layer, self.width = base_layer, width
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.configs: dict[str, BottleneckConfig] = {}
        self.stream: Tensor | None = None
        self._norm: list[nn.Module] = []  # in a list, lest it be a part of this one too
        self._disable_adapters, self.merged_adapters = False, list[str]()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, at the identity: its way up is zero."""
        down, up = nn.Linear(self.width, config.size), nn.Linear(config.size, self.width)
        nn.init.normal_(down.weight, std=0.02)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.configs[adapter_name] = config
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def read(self, place: nn.Module, argument: int, norm: nn.Module | None) -> None:
        """Read the stream off a module's arguments from now on; the norm is that on the sum, if there is one."""
        self._norm = [] if norm is None else [norm]

        def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.stream = given[argument] if len(given) > argument else named["hidden_states"]

        place.register_forward_pre_hook(keep, with_kwargs=True)

    @override
    def forward(self, *given: Any, **named: Any) -> Tensor:
        """The sub-layer's output (b, n, d), changed by the active adapters one after another."""
        output: Tensor = self.base_layer(*given, **named)
        stream, self.stream = self.stream, None
        if self.disable_adapters:
            return output
        assert stream is not None
        names: Any = self.active_adapters
        for name in names:
            if name in self.bottleneck_down:
                output = output + self._added(name, output, stream)
        return output

    def _added(self, name: str, output: Tensor, stream: Tensor) -> Tensor:
        config, up = self.configs[name], self.bottleneck_up[name]
        down: Any = self.bottleneck_down[name]
        if config.placement == "pfeiffer":
            read = output + stream
            read = self._norm[0](read) if self._norm else read
        else:
            read = output if config.placement == "houlsby" else stream
        act: Any = ACT2FN[config.activation]
        inner = act(down(read.to(down.weight.dtype)))
        added: Tensor = config.scaling * up(inner)
        return added.to(output.dtype)


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """A model with bottleneck adapters on it."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    @override
    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        return peft_config

    @override
    def inject_adapter(self, model: nn.Module, adapter_name: str, *more: Any, **named: Any) -> Any:
        """Put an adapter on the model, and have its layers read the stream."""
        config = self.peft_config[adapter_name]
        places = config.places(model)
        config.target_modules = [site.output for site in places]
        streams = [model.get_submodule(site.stream) for site in places]
        last = max(places, key=lambda site: site.block)
        norms = [(last if config.last_norm else site).norm for site in places]
        found = [model.get_submodule(norm) if norm else None for norm in norms]
        made = super().inject_adapter(model, adapter_name, *more, **named)
        for site, stream, norm in zip(places, streams, found, strict=True):
            layer: Any = model.get_submodule(site.output)
            layer.read(stream, site.argument, norm)
        return made

    @override
    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        width = self.model.config.get_text_config().hidden_size
        new = BottleneckLayer(target, adapter_name, peft_config, width)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        new.to(
            next(parent.parameters()).device
        )  # what ends a sub-layer may be its dropout, without a parameter
        setattr(parent, target_name, new)


PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = BottleneckModel.prefix
