"""What differs between architectures, told from their configuration and their modules, in one place.

A backbone belongs to one of three families: decoders (Llama, Gemma, Qwen), encoder-decoders (T5, mT5, NLLB) and
encoders (XLM-R, BERT). The first two answer in words; an encoder answers by a head that is trained with the adapter.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lingualift.errors import UserError

Family = Literal["decoder", "encoder-decoder", "encoder"]
HeadKind = Literal["words", "classes", "choices", "span"]

EAGER = ("gemma2",)
"""Model types whose attention is soft-capped, which transformers computes in eager attention alone."""

_KEYS_VALUES = (
    "k_proj",
    "v_proj",
    "key_proj",
    "value_proj",
    "key",
    "value",
    "k",
    "v",
    "query_key_value",
    "qkv_proj",
)
_QUERIES_VALUES = ("q_proj", "v_proj", "q", "v", "query", "value", "query_key_value", "qkv_proj")
_FEEDFORWARD = ("down_proj", "fc2", "wo", "dense_4h_to_h", "fc_out", "w2")
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_POSITIONS = re.compile(r"(?:wpe|pos\w*)(?:\.\w+)?$")
_SENSES = re.compile(r"(?:^|[._])(?:vision|visual|image|img|audio|speech)")
"""In paths of the parts of a model that read images or sound."""
_BEHIND_PADDING = re.compile(
    r"roberta|camembert|xmod|data2vec-text|longformer|mpnet|luke|ibert|lilt|markuplm"
)
"""Model types that count positions from behind the id of the padding token."""
_OFFSETS = 8  # rows that tables of positions have more, for padding and special tokens
_BLOCK = re.compile(r"(?:.+\.)?\d+\.(?P<place>.+)")


@dataclass(frozen=True)
class Head:
    """What a model answers with.

    Attributes:
        kind: `words`: the head that it was pretrained with. `classes`: one of some classes. `choices`: the best of
            some texts, each read by itself. `span`: a part of the text, from its first to its last token.
        labels: Number of classes, for `classes`; else 0.
    """

    kind: HeadKind = "words"
    labels: int = 0

    @property
    def outputs(self) -> int:
        """Numbers that it gives for each text (each token, for `span`)."""
        return {"words": 0, "classes": self.labels, "choices": 1, "span": 2}[self.kind]


WORDS = Head()


def family_of(config: Any) -> Family:
    """The family of a model, told from its transformers configuration.

    One that is pretrained to fill in masked words is an encoder, unless it is set up as a decoder
    (https://huggingface.co/docs/transformers/main/en/model_doc/auto#transformers.AutoModelForMaskedLM).
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder-decoder"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "encoder"
    return "decoder"


def objective_of(config: Any) -> str:
    """How a model learns from raw text: a value of `TextTask.objective`."""
    family = family_of(config)
    if family == "encoder-decoder":
        return "span-corruption" if "t5" in config.model_type else "prefix"
    return "causal" if family == "decoder" else "masked"


def model_class(family: Family, head: Head) -> Any:
    """The Auto class that loads a family with a head."""
    import transformers

    if head.kind == "span":
        return transformers.AutoModelForQuestionAnswering
    if head.kind != "words":
        return transformers.AutoModelForSequenceClassification
    return {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "encoder": transformers.AutoModelForMaskedLM,
    }[family]


def peft_task(family: Family, head: Head) -> str | None:
    """What peft calls the task of such a model; None for masked words, which it has no name for."""
    if head.kind == "span":
        return "QUESTION_ANS"
    if head.kind != "words":
        return "SEQ_CLS"
    return {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}[family]


def head_modules(model: Any) -> list[str]:
    """Names of the modules that make the head of an encoder and are trained with the adapter.

    These are all that the encoder proper does not hold, and the pooling layer of those that have one (BERT).
    """
    names = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    pooler = getattr(model.base_model, "pooler", None)
    return [*names, "pooler"] if pooler is not None else names


def draw_head(model: Any, fresh: Collection[str], seed: int) -> None:
    """Draw the weights of a fresh head anew, so that they follow from the seed alone.

    Args:
        model: A model with an adapter on it whose head is trained.
        fresh: Names of the weights that no checkpoint holds; the others stay.
        seed: Seed of the draw.
    """
    import torch

    base = model.get_base_model()
    torch.manual_seed(seed)
    for name, module in base.named_modules():
        path = name.replace(".modules_to_save.default", "")
        drawn = any(f"{path}.{weight}" in fresh for weight, _ in module.named_parameters(recurse=False))
        if path != name and drawn:
            base._init_weights(module)


def text_part(model: Any) -> str:
    """Path of the text model within a decoder that reads images or sound too; empty where text is all it reads."""
    if model.config.is_encoder_decoder or model.config.get_text_config() is model.config:
        return ""
    text = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is text), "")


def blocks(model: Any, *, whole: bool = False) -> Iterator[tuple[str, str, Any]]:
    """The linear layers of a model's numbered blocks: path, place within the block, module.

    Args:
        model: The model.
        whole: Whether those of a part that reads images or sound belong to them, which text never trains.
    """
    import torch

    linear: tuple[type, ...] = (torch.nn.Linear,)
    try:
        from transformers.pytorch_utils import Conv1D

        linear = (*linear, Conv1D)
    except ImportError:
        pass
    part = "" if whole else text_part(model)
    for name, module in model.named_modules():
        inside = _BLOCK.fullmatch(name)
        if isinstance(module, linear) and inside and (whole or _is_text(name, part)):
            yield name, inside["place"], module


def _is_text(path: str, part: str) -> bool:
    """Whether a layer is of the text model, which is at `part` where it is one by itself."""
    return path.startswith(f"{part}.") if part else not _SENSES.search(path)


def outside_blocks(model: Any) -> list[str]:
    """Paths of the linear layers that 4-bit rounding leaves alone: heads, and what transformers keeps in float32 (T5).

    transformers itself would round a classifier's layers, which are trained.
    """
    import torch

    kept = tuple(model._keep_in_fp32_modules or ())
    inside = {
        name for name, _, _ in blocks(model, whole=True) if not any(part in kept for part in name.split("."))
    }
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in linear if name not in inside]


def linear_names(model: Any) -> list[str]:
    """Names of the linear layers within the blocks, each once: what LoRA goes on where nothing is chosen."""
    return sorted({name.rsplit(".", 1)[-1] for name, _, _ in blocks(model)})


def pattern_of(model: Any, family: Family, names: Sequence[str]) -> list[str] | str:
    """What peft is told so that an adapter goes on linear layers of the blocks, and never on a head.

    The names of an encoder's layers (`dense`) are those of its heads' layers too, which differ between tasks. Those of
    a part that reads images or sound (`q_proj`) are often those of the text model's, which alone is meant then: that
    part is named before the layer (`vision_tower.q_proj`).

    Args:
        model: The model.
        family: Its family.
        names: Names of linear layers.

    Raises:
        UserError: a name matches no layer of a block.
    """
    part = text_part(model)
    mixed = any(not _is_text(path, part) for path, _, _ in blocks(model, whole=True))
    within = rf"{re.escape(part)}\..*" if part else rf"(?!.*{_SENSES.pattern}).*"
    places = {place for _, place, _ in blocks(model)}
    patterns = []
    for name in names:
        if any(place == name or place.endswith(f".{name}") for place in places):
            layer = re.escape(name) if name in places else rf"(?:.+\.)?{re.escape(name)}"
            patterns.append(rf"{within}\.\d+\.{layer}" if mixed else layer)
        else:
            patterns.append(_elsewhere(model, name))
    if mixed:
        return "|".join(patterns)
    return list(names) if family != "encoder" else rf".*\.\d+\.(?:{'|'.join(patterns)})"


def _elsewhere(model: Any, name: str) -> str:
    """A pattern of the layers of another part than text that a name means: `vision_tower.q_proj`.

    Raises:
        UserError: it means none.
    """
    part, _, layer = name.partition(".")
    for path, place, _ in blocks(model, whole=True):
        above = path.removesuffix(place).split(".")
        if layer and part in above and (place == layer or place.endswith(f".{layer}")):
            return rf"(?:.*\.)?{re.escape(part)}\.(?:.*\.)?\d+\.(?:.+\.)?{re.escape(layer)}"
    raise UserError(
        "adapter.modules",
        f"{name!r} is no linear layer of the backbone's blocks",
        f"some of {', '.join(linear_names(model))}",
        "name those",
    )


def fusion_names(model: Any) -> list[str]:
    """Names of the layers that fuse where nothing is chosen: queries and values (https://arxiv.org/abs/2501.06892).

    Raises:
        UserError: a model in which they are not recognised.
    """
    names = linear_names(model)
    found = [name for name in names if name in _QUERIES_VALUES]
    if not found:
        raise UserError(
            "flare.fusion_modules",
            "the queries and values of this backbone are not recognised",
            "the layers that fuse",
            f"name them; it has {', '.join(names)}",
        )
    return found


def ia3_modules(model: Any) -> tuple[list[str], list[str]]:
    """Where (IA)³ goes: keys, values and the way down of the feed-forward part (https://arxiv.org/abs/2205.05638).

    peft's own list lacks XLM-R and NLLB, has query for key in Gemma 2 and Qwen, scales the output of T5's
    attention-free part for its input in mT5, and names `output.dense`, which is a layer of BERT's attention too.

    Returns:
        Names of the layers within a block, and which of them are feed-forward (their input is scaled).

    Raises:
        UserError: a model in which they are not recognised.
    """
    attention, feedforward = set(), set()
    for _, place, _ in blocks(model):
        last = place.rsplit(".", 1)[-1]
        if last in _KEYS_VALUES:
            attention.add(last)
        elif last in _FEEDFORWARD:
            feedforward.add(last)
        elif place.endswith("output.dense") and not _ATTENTION.search(place):
            feedforward.add(place)
    if not attention or not feedforward:
        raise UserError(
            "adapter.modules",
            "the keys, values and feed-forward layers of this backbone are not recognised",
            "the layers that (IA)³ scales",
            f"name them; it has {', '.join(linear_names(model))}",
        )
    return sorted(attention | feedforward), sorted(feedforward)


def is_feedforward(name: str) -> bool:
    """Whether a layer that a user names is the way down of a feed-forward part, whose input (IA)³ scales."""
    return name.rsplit(".", 1)[-1] in _FEEDFORWARD or (
        name.endswith("output.dense") and not _ATTENTION.search(name)
    )


def prefix_shape(model: Any, family: Family) -> dict[str, int]:
    """Layers, heads and width of the keys and values that a prefix stands before, as peft's configuration has them.

    peft takes the width of the model for that of its keys and values, which it is not in some T5 and mT5 models, and
    the layers of the encoder for those of the decoder. Of an encoder-decoder's prefix it drops every second pair of key
    and value (it is meant for cross-attention), and begins anew when the pairs run out, so that with as many layers
    as the decoder has, layers share a prefix and half of it is never used (peft 0.21, `PeftModel.get_prompt`). Twice
    as many layers give every layer a prefix of its own, in plain peft too.

    Raises:
        UserError: a decoder, or an encoder that takes no keys and values from outside.
    """
    config = model.config
    if family == "decoder":
        raise UserError(
            "adapter.type",
            "prefix is for encoders and encoder-decoders, and this backbone is a decoder",
            "lora or ia3",
            "choose one of them",
        )
    if (
        family == "encoder"
        and "past_key_values" not in inspect.signature(model.base_model.forward).parameters
    ):
        raise UserError(
            "adapter.type",
            f"prefix needs keys and values from outside, which {type(model).__name__} does not take",
            "lora or ia3",
            "choose one of them",
        )
    if family == "encoder":
        layers, heads = config.num_hidden_layers, config.num_attention_heads
    else:
        layers = 2 * (getattr(config, "num_decoder_layers", None) or config.decoder_layers)
        heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = heads * config.d_kv if hasattr(config, "d_kv") else config.hidden_size
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": width}


def positions_of(config: Any) -> int | None:
    """How many tokens a model has positions for, as far as its configuration says; None where any number goes (T5).

    RoBERTa and its kin count positions from behind the id of the padding token.
    """
    text = config.get_text_config()
    places: int | None = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if places is not None and _BEHIND_PADDING.search(text.model_type):
        if text.pad_token_id is None:
            found = f"`pad_token_id` is null, behind which {text.model_type} counts positions"
            raise UserError("config.json", found, "the id of the padding token", "download it again")
        return places - int(text.pad_token_id) - 1
    return places


def bound_of(model: Any) -> int | None:
    """The number of tokens beyond which a model has no positions at all; None where it can go on, if badly.

    Encoders are held to theirs. Decoders and encoder-decoders have such a bound where they look their positions up in a
    table (GPT-2, OPT, BART, GPT-J); rotary and relative positions go on, and so do tables that grow (NLLB).
    """
    limit = positions_of(model.config)
    if limit is None or family_of(model.config) == "encoder" or model.config.model_type == "mpt":
        return limit
    for path, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            table = tensor.dim() == 2 and limit <= len(tensor) <= limit + _OFFSETS
            if table and _POSITIONS.search(f"{path}.{name}") and not _grows(module):
                return limit
    return None


def _grows(module: Any) -> bool:
    """Whether a table of positions is made anew when more are needed: the sinusoids of fairseq's models."""
    return hasattr(module, "make_weights") or hasattr(module, "make_weight")
