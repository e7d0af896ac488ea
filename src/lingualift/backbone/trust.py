"""What the configuration of somebody's model may ask of transformers: no code, and nothing from the hub.

`auto_map` is left to transformers, which runs code of a model only where `trust_remote_code` says so, and pickles are
never read (`use_safetensors`). What transformers does unasked is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lingualift.errors import UserError

_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


def check_model(config: Any, where: object) -> None:
    """Check what a model's configuration makes transformers load beside the model.

    Args:
        config: The configuration, as transformers read it.
        where: The model, for messages.

    Raises:
        UserError: it names a kernel, which transformers would fetch from the hub and run; its quantisation is none.
    """
    for part in _parts(config):
        for key in _IMPLEMENTATIONS:
            named = getattr(part, key, None)
            if named is not None and (not isinstance(named, str) or "/" in named):
                raise UserError(
                    where,
                    f"its config.json names the kernel {named!r} ({key.removeprefix('_')}), which would be fetched and "
                    "run",
                    "an implementation of transformers' own",
                    "remove the key",
                )
        quantized = getattr(part, "quantization_config", None)
        if quantized is not None and not _is_method(quantized):
            raise UserError(
                where,
                "its quantization_config names no method",
                "`quant_method` and its settings",
                "remove the key",
            )


def _parts(config: Any) -> Iterator[Any]:
    """A configuration, and those of the parts of a model that reads images or sound too."""
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(config, name, None)
        if hasattr(part, "to_diff_dict"):
            yield from _parts(part)


def _is_method(quantized: Any) -> bool:
    """Whether a quantisation is one by what it says; transformers knows which there are."""
    if not isinstance(quantized, Mapping):
        return hasattr(quantized, "quant_method")
    method = quantized.get("quant_method")
    return isinstance(method, str) or (
        method is None and bool({"load_in_4bit", "load_in_8bit"} & quantized.keys())
    )
