"""Which model it is: a backbone found in a folder or on the hub, with its configuration and its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lingualift.adapters.config import CONFIG_FILE
from lingualift.backbone.architectures import WORDS, Family, Head, family_of, objective_of
from lingualift.backbone.chat import template_of
from lingualift.backbone.checkpoint import CONFIG, check_config, former, of_folder, read_object
from lingualift.backbone.hub import commit_of, hub_file, of_hub, on_hub
from lingualift.config import Backbone
from lingualift.errors import UserError
from lingualift.provenance import reading, sha256_file

_TRIED = "A 0, é\n\u2603"
BUNDLED = "miniworld"
_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


@dataclass(frozen=True)
class BackboneRef:
    """A backbone that has been found: enough to load it again, and to tell it from any other.

    Attributes:
        name: As the user wrote it.
        source: Hub id or absolute folder.
        revision: Commit on the hub, None for a folder.
        dtype: Number format of the weights.
        trust_remote_code: Whether code that comes with the model may run.
        fingerprint: sha256 of its weights, architecture and tokenizer, wherever they lie (`backbone/checkpoint.py`).
        head: What it answers with; the steps that train and score a task choose it.
        quantization: Number format that the weights are rounded to when they are loaded; None for `dtype`.
        device_map: How the weights are spread over devices; None for one device.
        chat: Whether prompts are asked by the tokenizer's chat template.
        template: sha256 of that template, where they are.
        words: Folder of the head for words that is put on an encoder without one of its own
            (`lingualift.backbone.words`).
        words_fingerprint: sha256 of its weights.
    """

    name: str
    source: str
    revision: str | None
    dtype: str
    trust_remote_code: bool
    fingerprint: str
    head: Head = WORDS
    quantization: str | None = None
    device_map: str | None = None
    chat: bool = False
    template: str | None = None
    words: Path | None = None
    words_fingerprint: str | None = None

    def identity(self) -> dict[str, Any]:
        """What determines results; where a folder lies does not, and the head follows from the task."""
        fields = asdict(self)
        always = ("dtype", "trust_remote_code", "fingerprint")
        chosen = [key for key in ("quantization", "chat", "template", "words_fingerprint") if fields[key]]
        return {key: fields[key] for key in (*always, *chosen)}

    def record(self) -> dict[str, Any]:
        """What the provenance of an adapter says of the backbone that it was trained on."""
        fields = asdict(self)
        kept = {key: fields[key] for key in ("name", "revision", "fingerprint", "dtype", "quantization")}
        return {**kept, "formerly": self.formerly}

    @property
    def formerly(self) -> str | None:
        """The fingerprint that was told of it before, over all files of its folder."""
        return self.revision or former(Path(self.source))

    def known_as(self, fingerprint: object) -> bool:
        """Whether a fingerprint that an adapter recorded is this backbone's, as it is told now or was told before."""
        return fingerprint == self.fingerprint or (fingerprint is not None and fingerprint == self.formerly)

    @property
    def family(self) -> Family:
        """Decoder, encoder-decoder or encoder."""
        return family_of(_config(self.source, self.revision, self.trust_remote_code, self.name))

    @property
    def objective(self) -> str:
        """How it learns from raw text, as in its pretraining; by continuing it, for encoder-decoders but T5's kin."""
        return objective_of(_config(self.source, self.revision, self.trust_remote_code, self.name))

    def answering(self, head: Head) -> BackboneRef:
        """The same backbone with another head."""
        return replace(self, head=head)

    @property
    def lacks_words(self) -> bool:
        """Whether it is an encoder whose checkpoint has no head for words; told before it is loaded."""
        if self.family != "encoder":
            return False
        from lingualift.backbone.words import holds_words

        return not holds_words(self.answering(WORDS).with_words(None))

    def with_words(self, folder: Path | None) -> BackboneRef:
        """The same backbone with a head for words that was trained for it; None for that of its checkpoint.

        Raises:
            UserError: the folder holds no such head, or one of another backbone.
        """
        if folder is None:
            return replace(self, words=None, words_fingerprint=None)
        from lingualift.backbone.words import HEAD_FILE, check_words

        check_words(folder, self)
        return replace(self, words=folder, words_fingerprint=sha256_file(folder / HEAD_FILE))


def find_backbone(backbone: Backbone, base: Path = Path()) -> BackboneRef:
    """Find a backbone without loading it.

    Args:
        backbone: The experiment's entry.
        base: Folder that a relative path starts from.

    Raises:
        UserError: there is no such folder, it holds no model, or the hub does not answer; it has no chat template
            that prompts could be asked by; bitsandbytes is wanted and missing; several processes would spread it.
    """
    if backbone.quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "backbone.quantization",
            f"{backbone.quantization} needs bitsandbytes, which is not installed",
            mend='pip install "lingualift[quantization]", or leave `quantization` out',
        )
    if backbone.device_map and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "backbone.device_map",
            f"{backbone.device_map} is set in one of several processes, each of which would spread the backbone",
            mend="leave `device_map` out, or train without `accelerate launch`",
        )
    ref = _found(backbone, base)
    if not ref.chat:
        return ref
    if ref.family != "decoder":
        raise UserError(
            "backbone.chat_template",
            f"is for decoders, and {ref.name!r} is one of the {ref.family}s",
            mend="leave `chat_template` out",
        )
    return replace(ref, template=template_of(load_tokenizer(ref), ref.name))


def _found(backbone: Backbone, base: Path) -> BackboneRef:
    folder = _folder(backbone.name, base)
    how: dict[str, Any] = {
        "dtype": backbone.dtype,
        "trust_remote_code": backbone.trust_remote_code,
        "quantization": backbone.quantization,
        "device_map": backbone.device_map,
        "chat": backbone.chat_template,
    }
    if folder is None:
        with on_hub(backbone):
            commit = commit_of(backbone)
            if hub_file(backbone.name, CONFIG_FILE, commit):
                raise _adapted(f"backbone {backbone.name!r}")
            config = hub_file(backbone.name, CONFIG, commit)
            if config:
                check_config(config, read_object(config))
            how["fingerprint"] = of_hub(backbone.name, commit)
        return BackboneRef(backbone.name, backbone.name, commit, **how)
    if not (folder / "config.json").is_file():
        raise UserError(
            folder, "holds no config.json", "a folder written by save_pretrained", "check the path"
        )
    if (folder / CONFIG_FILE).is_file():
        raise _adapted(folder / CONFIG_FILE)
    check_config(folder / CONFIG, read_object(folder / CONFIG))
    return BackboneRef(backbone.name, str(folder), None, fingerprint=of_folder(folder), **how)


def _adapted(where: object) -> UserError:
    """Transformers puts an adapter that lies beside a model's weights on it, unasked (peft issue 1381)."""
    return UserError(
        where,
        f"has an adapter beside a model's weights ({CONFIG_FILE}), which would be put on it unasked",
        "a backbone without an adapter",
        f"move {CONFIG_FILE} and its tensors to a folder of their own; name that as the adapter, if it is one to use",
    )


def _folder(name: str, base: Path) -> Path | None:
    """The folder that a name means, None for a hub id."""
    if name == BUNDLED:
        from lingualift.miniworld import BACKBONE

        return Path(BACKBONE)
    with contextlib.suppress(RuntimeError):  # no such home
        path = base / Path(name).expanduser()
        with reading(Path(name)):
            is_folder = path.is_dir()
        if is_folder:
            return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"backbone {name!r}", "is no folder", "a folder, a hub id or `miniworld`", "check the path"
        )
    return None


def read_config(ref: BackboneRef) -> Any:
    """The configuration of a backbone, which is not to be changed; raises a `UserError` if it cannot be read."""
    return _config(ref.source, ref.revision, ref.trust_remote_code, ref.name)


@functools.cache
def _config(source: str, revision: str | None, trust_remote_code: bool, name: str) -> Any:
    """The configuration of a model.

    Raises:
        UserError: it cannot be read.
    """
    import transformers

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with loading(name):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    _check_asked(config, f"backbone {name!r}")
    return config


def _check_asked(config: Any, where: object) -> None:
    """Check what a model's configuration asks of transformers: no code, and nothing from the hub.

    `auto_map` is left to transformers, which runs code of a model only where `trust_remote_code` says so, and pickles
    are never read (`use_safetensors`). What transformers does unasked is refused.

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


def load_tokenizer(ref: BackboneRef) -> Any:
    """The tokenizer with a padding token, and with a chat template only if prompts are asked by it.

    Raises:
        UserError: it cannot be loaded, or has no token to pad with.
    """
    import transformers

    options = {"revision": ref.revision, "trust_remote_code": ref.trust_remote_code}
    with loading(ref.name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(ref.source, **options)
        tokenizer.decode(tokenizer(_TRIED)["input_ids"])  # some faults show when it is used
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"backbone {ref.name!r}",
            "its tokenizer has no padding token, and no end-of-text, unknown or beginning-of-text token in its place",
            "a token that short rows of a batch are filled up with",
            "name one in its tokenizer_config.json (`pad_token`); a token that never occurs in text is fine",
        )
    if not ref.chat:
        tokenizer.chat_template = None
    return tokenizer


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever transformers, tokenizers and safetensors raise when they read a damaged backbone into one error.

    Nothing of ours runs within.

    Args:
        name: The backbone's, as the user wrote it.

    Raises:
        UserError: they raise anything.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        panics = type(error).__name__ == "PanicException"  # of the libraries in Rust, which is no Exception
        if not isinstance(error, Exception) and not panics:
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:300]
        short = isinstance(error, MemoryError) or "allocate" in reason or "out of memory" in reason
        raise UserError(
            f"backbone {name!r}",
            f"cannot be loaded ({reason})",
            "a language model of transformers",
            "free memory, or take a smaller backbone" if short else "check its files, or download it again",
        ) from error
