"""Putting adapters on a resident backbone, with the head that it answers by, and taking them off again."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lingualift.adapters import Adapter, open_adapter
from lingualift.adapters.config import BOTTLENECK, CONFIG_FILE, FUSED, KNOWN, PLAIN_STARTS
from lingualift.adapters.targets import (
    BEGUN_BY,
    BY_END,
    NOTHING,
    TARGETS,
    check_known,
    check_sizes,
    spelt_out,
)
from lingualift.backbone.architectures import WORDS, head_modules, peft_task
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import BackboneRef
from lingualift.encoding.heads import head_of
from lingualift.errors import UserError
from lingualift.tasks import Task, TextTask


def check_adapter(ref: BackboneRef, adapter: Path) -> None:
    """Check that a folder is an adapter, whole, and made for this backbone as far as it says.

    Raises:
        UserError: no adapter, damaged, or trained on another backbone, or on prompts asked in another way.
    """
    opened = open_adapter(adapter)
    opened.verify()
    check_sizes(opened)
    recorded = opened.provenance or {}
    made_for = recorded.get("backbone") or {}
    theirs = made_for.get("fingerprint")
    if theirs and not ref.known_as(theirs):
        raise UserError(
            opened.path,
            f"was made for the backbone {made_for.get('name')!r} (fingerprint {theirs[:12]})",
            f"one made for {ref.name!r} (fingerprint {ref.fingerprint[:12]})",
            "name that backbone, or another adapter",
        )
    asked = recorded.get("chat_template")
    if asked is not None and asked != ref.chat:
        raise UserError(
            opened.path,
            f"was trained on prompts {'in' if asked else 'without'} the chat template",
            "prompts as it was trained on",
            f"{'set' if asked else 'leave out'} `chat_template` (--chat-template)",
        )


def check_labels(ref: BackboneRef, adapter: Path, labels: Sequence[str]) -> None:
    """Check that an encoder's adapter was trained on these classes, as far as it says.

    Raises:
        UserError: it has a head for others, or for these in another order.
    """
    theirs = (open_adapter(adapter).provenance or {}).get("labels")
    if ref.head.kind == "classes" and theirs is not None and list(theirs) != list(labels):
        raise UserError(
            adapter,
            f"has a head for {', '.join(theirs)}",
            f"one for {', '.join(labels)}",
            "name an adapter that was trained on this task",
        )


def answering(ref: BackboneRef, task: Task | TextTask, rows: Sequence[Any]) -> BackboneRef:
    """The backbone with the head that answers a task; raises as `head_of`."""
    if ref.family != "encoder" or isinstance(task, TextTask):
        return ref.answering(WORDS)
    return ref.answering(head_of(ref.family, task, rows, type(task).__name__))


def attach(ref: BackboneRef, adapter: Path, *, trainable: bool = False) -> Any:
    """Put an adapter on the resident backbone, every tensor of its folder in its place; `detach` takes it off again.

    A fused adapter comes with its first stage, and reads the source side of rows (docs/fusing.md).

    An adapter without a head, put on a backbone that answers by one, is given a fresh one if it is to be trained. The
    head of an encoder's adapter is left off where the backbone fills in masked words by its own.

    Args:
        ref: The backbone; it is loaded if it is not.
        adapter: Adapter folder.
        trainable: Whether its tensors, and its head's, are to be trained.

    Raises:
        UserError: no adapter, damaged, made for another model, or without the head that is needed; the model is as it
            was then.
    """
    opened = open_adapter(adapter)
    opened.verify()
    model, _ = load_backbone(ref)
    if opened.kind in FUSED:
        return _attach_fused(ref, model, adapter, opened.kind, trainable)
    check_sizes(opened)
    with contextlib.ExitStack() as undo:
        try:
            config = _peft_config(opened)
            config.inference_mode = not trainable
            body = ref.family == "encoder" and ref.head.kind == "words"
            left_off = set(config.modules_to_save or ()) if body else set()
            config.modules_to_save = None if left_off else config.modules_to_save
            headless = ref.head.kind != "words" and not config.modules_to_save
            if headless and not trainable:
                raise UserError(
                    adapter,
                    "has no head to answer with",
                    "an adapter trained on the task",
                    "name the task adapter",
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its audit comes below
                wrapped = wrap(ref, model, config, adapter / CONFIG_FILE)
                undo.callback(detach, wrapped)
                if headless or not opened.layout.plain:
                    missing, unexpected = _load(wrapped, opened, head_modules(model) if headless else ())
                else:
                    loaded = wrapped.load_adapter(str(adapter), "default", is_trainable=trainable)
                    missing, unexpected = loaded.missing_keys, loaded.unexpected_keys
            if config.is_prompt_learning:  # peft takes it by another way, and checks its shape
                unexpected = [key for key in unexpected if key != "prompt_embeddings"]
            unexpected = [key for key in unexpected if not left_off & set(key.split("."))]
            problems = [*missing, *unexpected]
        except UserError:
            raise
        except Exception as error:  # peft raises many kinds, by what a configuration asks of it
            said = str(error) or type(error).__name__
            problems = [line.strip() for line in said.splitlines() if "Error(s)" not in line]
        if problems:
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            found = f"does not fit the backbone: {problems[0][:300]}{more}"
            raise UserError(adapter, found, "an adapter of this backbone", "name another backbone or adapter")
        undo.pop_all()
    return wrapped


def _peft_config(adapter: Adapter) -> Any:
    """Peft's configuration of an adapter, made of the keys that are known (`lingualift.adapters.config`).

    Raises:
        UserError: a kind that peft does not know, or a key that is not known here.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    given, file = adapter.config, adapter.path / CONFIG_FILE
    if given.get("peft_type") == BOTTLENECK:
        import lingualift.bottlenecks  # noqa: F401  # makes peft know it
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(given.get("peft_type"))
    if kind is None:
        found = f"peft_type is {given.get('peft_type')!r}, which peft does not know"
        raise UserError(file, found, "a kind of peft's", "update peft, or train another adapter")
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    check_known(given, known, file)
    taken = {*KNOWN, "rank_pattern"} & known.keys() - {*BEGUN_BY}
    config = kind(**{key: value for key, value in given.items() if key in taken})
    begun = {key: given[key] for key in BEGUN_BY if key in given and key in known}
    return said_as(config, begun)


def said_as(config: Any, given: Mapping[str, Any]) -> Any:
    """A configuration of peft's that is written with these values in place of those that it works by."""
    before = config.to_dict
    config.to_dict = lambda: {**before(), **given}
    return config


def _attach_fused(ref: BackboneRef, model: Any, adapter: Path, kind: str, trainable: bool) -> Any:
    """Put a fused adapter on the model, with its first stage; raises as `attach`."""
    from lingualift.fusion import MODELS, FlareConfig
    from lingualift.fusion.config import CONFIGS

    config = CONFIGS[kind].from_folder(adapter)
    heads = config.modules_to_save
    if ref.head.kind != "words" and not heads:
        raise UserError(
            adapter, "has no head to answer with", "one that began from a first stage with a head"
        )
    if ref.head.kind == "words" and heads:
        raise UserError(adapter, "answers by a head", "its task", "take the task that it was trained on")
    load = MODELS[type(config)].load
    if not isinstance(config, FlareConfig) or config.source_encoder is None:
        return load(model, config, adapter, is_trainable=trainable)
    from lingualift.fusion.translator import translator_of

    translator = translator_of(config)
    wrapped = load(model, config, adapter, is_trainable=trainable, source_encoder=translator.encoder)
    wrapped.translator = translator
    return wrapped


def _load(wrapped: Any, adapter: Adapter, fresh: Sequence[str]) -> tuple[list[str], list[str]]:
    """Load an adapter's tensors where plain peft would not: under other names, or without a head.

    Args:
        wrapped: The model with the adapter on it.
        adapter: The folder.
        fresh: Names of modules that the folder holds nothing of, and which stay as they are.

    Returns:
        Tensors of the adapter that its folder lacks, and tensors of the folder that are none of the adapter's.
    """
    import peft
    from safetensors.torch import load_file

    held = load_file(adapter.weights_file)
    tensors = {name: held[theirs] for name, theirs in adapter.layout.names.items()}
    if fresh:
        whole = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        tensors |= {key: value for key, value in whole.items() if set(fresh) & set(key.split("."))}
    loaded = peft.set_peft_model_state_dict(wrapped, tensors)
    own = [key for key in loaded.missing_keys if "default" in key.split(".") and "prompt_encoder" not in key]
    return own, loaded.unexpected_keys


def wrap(ref: BackboneRef, model: Any, config: Any, where: object = "adapter.modules") -> Any:
    """A model with a new adapter on it, of peft's class for its task; with a head to train if it answers by one.

    Args:
        ref: The backbone.
        model: What `load_backbone` or `skeleton` made of it.
        config: peft's configuration of the adapter; the task is filled in.
        where: Where that stands, for messages.

    Raises:
        ValueError: peft finds no place for it; the model is as it was then.
        UserError: a pattern of its configuration takes too long to match.
    """
    from lingualift.backbone.original import remembered

    config.task_type = peft_task(ref.family, ref.head)
    if ref.head.kind != "words" and not config.modules_to_save:
        config.modules_to_save = head_modules(model)
    _spell_out(model, config, where)
    start = getattr(
        config, "init_lora_weights", None
    )  # others than plain ones change the backbone (PiSSA, OLoRA)
    with remembered(model, whole=start not in PLAIN_STARTS) as original, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # peft tells what it sets right by itself (Conv1D, tied layers)
        wrapped = _wrapped(ref, model, config)
        original.watch(wrapped)
    return wrapped


def _spell_out(model: Any, config: Any, where: object) -> None:
    """Name the modules that a configuration means by patterns, which peft would match without a bound on time."""
    given = {
        key: getattr(config, key)
        for key in (*TARGETS, "feedforward_modules", *BY_END)
        if hasattr(config, key)
    }
    names = _names(model, getattr(config, "layer_replication", None))
    changed = spelt_out(given, names, where)
    for key, value in changed.items():
        setattr(config, key, value)
    if changed.get("target_modules") == NOTHING:
        raise ValueError(f"Target modules {given['target_modules']} not found in the base model.")
    said_as(config, {key: given[key] for key in changed if key in given})


def _names(model: Any, repeated: Sequence[tuple[int, int]] | None) -> list[str]:
    """Names of all that an adapter can be put on: modules and weights, those of layers that peft repeats or renames."""
    from peft.utils import transformers_weight_conversion as renaming

    modules = [name for name, _ in model.named_modules()]
    names = [*modules, *(name for name, _ in model.named_parameters())]
    for index in range(sum(end - start for start, end in repeated or ())):
        names += [
            re.sub(r"^((?:.*?\.)?)\d+(?=\.|$)", rf"\g<1>{index}", name) for name in names[: len(modules)]
        ]
    family = getattr(renaming, "_MODEL_TO_CONVERSION_PATTERN", {}).get(model.config.model_type)
    old = getattr(renaming, "_MOE_TARGET_MODULE_MAPPING", {}).get(family, ())  # of experts, in transformers 4
    names += [f"{module}.{name}" for module in modules for name in old]
    return list(dict.fromkeys(names))


def _wrapped(ref: BackboneRef, model: Any, config: Any) -> Any:
    import peft
    from peft.tuners.ia3 import IA3Layer

    from lingualift.backbone.products import fold_lora

    if config.is_prompt_learning and config.task_type is None:
        wrapped = _prefixed(model, config)
    else:
        kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
        if config.is_prompt_learning and ref.head.kind != "words":
            kind = _typed(kind, ref.dtype)
        wrapped = kind(model, config)
    _repeat_kinds(model, getattr(config, "layer_replication", None))
    wrapped.create_or_update_model_card = lambda _: None  # peft's says nothing, and adapters get one of ours
    fold_lora(wrapped)
    if ref.quantization and config.peft_type == "IA3":
        for module in wrapped.modules():
            if isinstance(module, IA3Layer):  # of which peft leaves the 4-bit ones' output in float32
                module.register_forward_hook(lambda _, given, output: output.to(given[0].dtype))
    return wrapped


def _repeat_kinds(model: Any, repeated: Sequence[tuple[int, int]] | None) -> None:
    """Say of which kind layers are that peft repeats (`layer_replication`), which it forgets to."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if repeated and kinds:
        text.layer_types = [kinds[index] for start, end in repeated for index in range(start, end)]


def _typed(kind: type[Any], dtype: str) -> type[Any]:
    """Peft's class with prefixes in the format of the blocks; it would take that of the head where that comes first."""
    import torch

    return type(kind.__name__, (kind,), {"base_model_torch_dtype": getattr(torch, dtype)})


def _prefixed(model: Any, config: Any) -> Any:
    """A masked language model with a prefix, which peft has no class for."""
    import peft
    import torch

    class Prefixed(peft.PeftModel):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any, **more: Any) -> Any:
            """The model's own forward pass, with the prefix before the keys and values of every layer."""
            tokens = self.active_peft_config.num_virtual_tokens
            seen = attention_mask.new_ones(len(input_ids), tokens)
            return self.get_base_model()(
                input_ids=input_ids,
                attention_mask=torch.cat([seen, attention_mask], dim=1),
                past_key_values=self.get_prompt(len(input_ids)),
                **more,
            )

    return Prefixed(model, config)


def detach(wrapped: Any) -> None:
    """Take off what `attach` or `wrap` put on a model, which is then what it was before, to the last byte.

    Raises:
        RuntimeError: it is not; the resident backbone is loaded anew when it is needed next.
    """
    try:
        wrapped.original.restore()
    except RuntimeError:
        load_backbone.cache_clear()
        raise
