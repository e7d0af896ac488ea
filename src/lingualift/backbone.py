"""Loading backbones and their tokenizers, and every fact about architectures that the rest needs."""

from __future__ import annotations

import functools
import inspect
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingualift.adapters import open_adapter
from lingualift.config import Backbone
from lingualift.errors import UserError
from lingualift.provenance import PROVENANCE_FILE, read_json, sha256_folder

BUNDLED = "miniworld"


@dataclass(frozen=True)
class BackboneRef:
    """A backbone that has been found: enough to load it again, and to tell it from any other.

    Attributes:
        name: As the user wrote it.
        source: Hub id or absolute folder.
        revision: Commit on the hub, None for a folder.
        dtype: Number format of the weights.
        trust_remote_code: Whether code that comes with the model may run.
        fingerprint: sha256 of a folder's weights, config and tokenizer, or the hub's commit.
    """

    name: str
    source: str
    revision: str | None
    dtype: str
    trust_remote_code: bool
    fingerprint: str

    def identity(self) -> dict[str, Any]:
        """What determines results; where a folder lies does not."""
        fields = asdict(self)
        return {key: fields[key] for key in ("dtype", "trust_remote_code", "fingerprint")}


def find_backbone(backbone: Backbone, base: Path = Path()) -> BackboneRef:
    """Find a backbone without loading it.

    Args:
        backbone: The experiment's entry.
        base: Folder that a relative path starts from.

    Raises:
        UserError: there is no such folder, it holds no model, or the hub does not answer.
    """
    folder = _folder(backbone.name, base)
    if folder is None:
        commit = _hub_commit(backbone)
        return BackboneRef(
            backbone.name, backbone.name, commit, backbone.dtype, backbone.trust_remote_code, commit
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            folder, "holds no config.json", "a folder written by save_pretrained", "check the path"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(folder, "holds no safetensors weights", mend="save the model with safetensors")
    fingerprint = _folder_fingerprint(folder)
    return BackboneRef(
        backbone.name, str(folder), None, backbone.dtype, backbone.trust_remote_code, fingerprint
    )


def _folder(name: str, base: Path) -> Path | None:
    """The folder that a name means, None for a hub id."""
    if name == BUNDLED:
        from lingualift.miniworld import BACKBONE

        return Path(BACKBONE)
    path = base / Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"backbone {name!r}", "is no folder", "a folder, a hub id or `miniworld`", "check the path"
        )
    return None


@functools.cache
def _folder_fingerprint(folder: Path) -> str:
    return sha256_folder(folder, suffixes=(".json", ".safetensors", ".model", ".txt", ".jinja"))


def _hub_commit(backbone: Backbone) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        file = cached_file(backbone.name, "config.json", revision=backbone.revision)
        return str(extract_commit_hash(file, None))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone {backbone.name!r}",
            f"is no folder here and cannot be fetched from the hub ({reason})",
            "a folder or a hub id",
            "check the name, `revision` and the network, or log in with `hf auth login`",
        ) from error


def skeleton(ref: BackboneRef) -> Any:
    """The model without its weights, made from its config alone, on torch's `meta` device.

    Raises:
        UserError: the config is none of a causal language model.
    """
    import torch
    import transformers

    options = {"revision": ref.revision, "trust_remote_code": ref.trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(ref.source, **options)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(
                config, trust_remote_code=ref.trust_remote_code
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(ref, error) from error


def _unloadable(ref: BackboneRef, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"backbone {ref.name!r}", f"cannot be loaded ({reason})", "a causal language model")


@functools.lru_cache(maxsize=1)
def load_backbone(ref: BackboneRef) -> tuple[Any, Any]:
    """The model (frozen, in eval mode, on this process's device) and its tokenizer; the last one stays resident.

    Raises:
        UserError: the model or tokenizer cannot be loaded.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {"revision": ref.revision, "trust_remote_code": ref.trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(ref.source, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            ref.source, dtype=getattr(torch, ref.dtype), use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(ref, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if hasattr(
        model, "generation_config"
    ):  # what a backbone ships (penalties, sampling) is not greedy decoding
        model.generation_config = transformers.GenerationConfig()
    model.requires_grad_(False).eval().to(device())
    return model, tokenizer


def check_adapter(ref: BackboneRef, adapter: Path) -> None:
    """Check that a folder is an adapter, whole, and made for this backbone as far as it says.

    Raises:
        UserError: no adapter, damaged, or trained on another backbone.
    """
    opened = open_adapter(adapter)
    provenance = adapter / PROVENANCE_FILE
    made_for = read_json(provenance).get("backbone", {}) if provenance.is_file() else {}
    theirs = made_for.get("fingerprint")
    if theirs and theirs != ref.fingerprint:
        raise UserError(
            opened.path,
            f"was made for the backbone {made_for.get('name')!r} (fingerprint {theirs[:12]})",
            f"one made for {ref.name!r} (fingerprint {ref.fingerprint[:12]})",
            "name that backbone, or another adapter",
        )


def attach(model: Any, adapter: Path, *, trainable: bool = False) -> Any:
    """Put an adapter on a model, every tensor of its folder in its place; `detach` takes it off again.

    Raises:
        UserError: no adapter, damaged, or made for another model; the model is as it was then.
    """
    import peft

    open_adapter(adapter)
    wrapped = None
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = not trainable
        wrapped = peft.PeftModelForCausalLM(model, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its audit comes below
            loaded = wrapped.load_adapter(str(adapter), "default", is_trainable=trainable)
        problems = [*loaded.missing_keys, *loaded.unexpected_keys]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        problems = [line.strip() for line in str(error).splitlines() if "Error(s)" not in line]
    if problems:
        detach(wrapped or model)
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        found = f"does not fit the backbone: {problems[0][:300]}{more}"
        raise UserError(adapter, found, "an adapter of this backbone", "name another backbone or adapter")
    return wrapped


def detach(wrapped: Any) -> None:
    """Take an adapter off the model that `attach` put it on."""
    base = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    tuner: Any = getattr(wrapped, "base_model", None)
    if hasattr(tuner, "unload"):  # kinds that live in layers; the others only wrap the model
        tuner.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config


def device() -> str:
    """Where models run: the first GPU, Apple's, or the processor."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory() -> int:
    """Bytes of this process's device that are free."""
    import psutil
    import torch

    if device() == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _cgroup_bytes(name: str) -> int | None:
    """A number of the container that this process runs in, where there is one."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def scored_bytes(model: Any, tokens: int) -> int:
    """Bytes that a row of so many tokens takes while it is scored: keys and values, and the logits of a token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(
        2 * config.num_hidden_layers * width * tokens * model.dtype.itemsize + 2 * 4 * config.vocab_size
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or a GPU."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def clear_memory() -> None:
    """Give back what no tensor uses any more."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def recompute_activations(model: Any, on: bool) -> None:
    """Switch gradient checkpointing, which transformers calls activation checkpointing from 5.23 on."""
    if on:
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    else:
        (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()
        model.disable_input_require_grads()  # a hook on the embeddings that switching on has left


def keeps_logits(model: Any) -> bool:
    """Whether the model's forward pass can leave out the logits of a prompt (`logits_to_keep`)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def use_threads(count: int) -> None:
    """Bound this process's arithmetic to so many threads."""
    import torch

    torch.set_num_threads(count)
