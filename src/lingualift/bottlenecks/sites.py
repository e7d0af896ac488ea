"""Where bottleneck adapters stand in a backbone: the outputs of its sub-layers, and what is added to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lingualift.errors import UserError

Place = Literal["attention", "cross-attention", "feed-forward"]
_BOTH: tuple[Place, Place] = ("attention", "feed-forward")


@dataclass(frozen=True)
class Site:
    """One sub-layer of a block, by paths within the model.

    Attributes:
        block: Number of its block, those of a decoder after those of the encoder.
        place: Which sub-layer.
        output: The module whose output f is the sub-layer's, before it is added to the stream r.
        stream: The module that is given r.
        argument: Which of its arguments r is, from 0.
        norm: The norm that the backbone puts on f + r, or in Gemma 2 and 3 on f; empty where there is none.
        theirs: What `adapters` calls the place.
    """

    block: int
    place: Place
    output: str
    stream: str
    theirs: str
    argument: int = 0
    norm: str = ""


def sites(model: Any) -> list[Site]:
    """Every place of a model where a bottleneck can stand, block by block.

    Raises:
        UserError: a model whose sub-layers are not recognised.
    """
    found = [site for find in (_post_norm, _t5, _gated, _gpt2) for site in find(model)]
    if not found:
        raise UserError(
            f"backbone {type(model).__name__}",
            "has no sub-layers that are known here",
            "one built as BERT, XLM-R, T5, mT5, Llama, Mistral, Qwen, Gemma or GPT-2 are",
            "train LoRA, which goes on any linear layer",
        )
    return found


def _children(model: Any, pattern: str, *needed: str) -> Iterator[tuple[re.Match[str], Any]]:
    """Modules whose path matches and which have these modules in them."""
    for path, module in model.named_modules():
        match = re.fullmatch(pattern, path)
        if match and all(_has(module, name) for name in needed):
            yield match, module


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


def _post_norm(model: Any) -> Iterator[Site]:
    """BERT and its kin: a dense layer, dropout, and a norm on the sum."""
    for match, _ in _children(
        model, r"(.*\.layer\.(\d+))\.(attention\.)?output", "dense", "dropout", "LayerNorm"
    ):
        path, place = match[0], "attention" if match[3] else "feed-forward"
        yield Site(int(match[2]), place, f"{path}.dropout", path, path, 1, f"{path}.LayerNorm")  # type: ignore[arg-type]


def _t5(model: Any) -> Iterator[Site]:
    """T5 and mT5: norms on what sub-layers read alone."""
    before = len({match[2] for match, _ in _children(model, r"(.*\.)?encoder\.block\.(\d+)", "layer")})
    for match, _ in _children(
        model, r"(?:.*\.)?(encoder|decoder)\.block\.(\d+)\.layer\.(\d)", "dropout", "layer_norm"
    ):
        stack, block, number = match[1], int(match[2]), int(match[3])
        last = 1 if stack == "encoder" else 2
        place: Place = "attention" if number == 0 else "feed-forward" if number == last else "cross-attention"
        yield Site(block + before * (stack == "decoder"), place, f"{match[0]}.dropout", match[0], match[0])


def _gated(model: Any) -> Iterator[Site]:
    """Llama and its kin: norms on what sub-layers read, and in Gemma 2 and 3 on what they give too."""
    needed = ("self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    for match, module in _children(model, r"(?:.*\.)?layers\.(\d+)", *needed):
        path, block = match[0], int(match[1])
        both = _has(module, "pre_feedforward_layernorm")
        read = "pre_feedforward_layernorm" if both else "post_attention_layernorm"
        norms = (
            (f"{path}.post_attention_layernorm", f"{path}.post_feedforward_layernorm") if both else ("", "")
        )
        ends = (
            ("self_attn.o_proj", "input_layernorm", "attention_adapters"),
            ("mlp.down_proj", read, "output_adapters"),
        )
        for place, norm, (output, stream, theirs) in zip(_BOTH, norms, ends, strict=True):
            yield Site(block, place, f"{path}.{output}", f"{path}.{stream}", f"{path}.{theirs}", 0, norm)


def _gpt2(model: Any) -> Iterator[Site]:
    for match, _ in _children(
        model, r"(?:.*\.)?h\.(\d+)", "attn.resid_dropout", "mlp.dropout", "ln_1", "ln_2"
    ):
        path, block = match[0], int(match[1])
        yield Site(
            block, "attention", f"{path}.attn.resid_dropout", f"{path}.ln_1", f"{path}.attention_adapters"
        )
        yield Site(block, "feed-forward", f"{path}.mlp.dropout", f"{path}.ln_2", f"{path}.output_adapters")
