"""Adapter folders: finding, opening and writing them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingualift.adapters.config import CONFIG_FILE, KINDS, Refusal, check_config, refusal
from lingualift.adapters.layout import PLAIN, WRAPPERS, Layout, brought_back, layout_of, renamed, same_modules
from lingualift.adapters.structure import Module, Structure, lora, structure
from lingualift.adapters.tensorfile import Array, TensorFile, TensorSpec, as_float32, write_tensors
from lingualift.adapters.vectors import bottlenecks, prefix, prompt, vectors
from lingualift.errors import UserError
from lingualift.provenance import (
    PROVENANCE_FILE,
    atomic_folder,
    read_json,
    sha256_file,
    write_json,
    write_text,
)

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
_FROM_PICKLE = (
    'python -c "import torch, safetensors.torch as s; '
    "t = torch.load('adapter_model.bin', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in t.items()}, 'adapter_model.safetensors')\""
)
_RESTORE = "restore the adapter from its source"
_SORT = {"lora": lora, "ia3": vectors, "prefix": prefix, "prompt": prompt, "bottleneck": bottlenecks}


class Adapter:
    """An adapter folder, opened: headers are read and checked, tensors only when asked for.

    Names are those that peft reads, whoever wrote the folder (`lingualift.adapters.layout`).

    Attributes:
        config: Content of `adapter_config.json`.
        changed: Keys of it whose names of modules were brought back.

    Args:
        path: The folder that holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UserError: a file is missing or damaged, or the tensors contradict the configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        written = _object(path / CONFIG_FILE)
        check_config(written, path / CONFIG_FILE)
        text = json.dumps(written)
        wrapped = any(wrapper in text for wrapper in WRAPPERS)
        self.config: dict[str, Any] = brought_back(written) if wrapped else written
        self.changed = tuple(key for key, value in self.config.items() if value != written[key])
        self.refusal: Refusal | None = refusal(self.config)
        peft_type = str(self.config.get("peft_type"))
        self.kind: str = KINDS.get(peft_type, peft_type.lower())
        provenance = path / PROVENANCE_FILE
        self.provenance: dict[str, Any] | None = _recorded(provenance) if provenance.is_file() else None
        self.weights_file = _weights_file(path)
        self._file = TensorFile(self.weights_file)
        names = self._file.specs
        own = all(map(PLAIN.fullmatch, names))
        self.layout = Layout({name: name for name in names}) if own else layout_of(names, self.config, path)

    @functools.cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """All tensors by name: number format and shape."""
        specs = self._file.specs
        return MappingProxyType(
            {name: replace(specs[theirs], name=name) for name, theirs in self.layout.names.items()}
        )

    @functools.cached_property
    def structure(self) -> Structure:
        """The tensors sorted into modules and whole values.

        Raises:
            UserError: the kind cannot be merged, or the tensors contradict the configuration.
        """
        if self.refusal:
            raise UserError(self.path, self.refusal.reason, mend=self.refusal.mend)
        modules = _SORT[self.kind](self.config, self.tensors, self.path)
        return structure(self.kind, modules, self.config, self.tensors, self.path)

    @property
    def modules(self) -> dict[str, Module]:
        """The modules by name; see `structure`."""
        return self.structure.modules

    @property
    def backbone(self) -> dict[str, Any]:
        """What it says of its backbone: `name`, `revision` and, where recorded, `fingerprint` and `formerly`.

        The last is the fingerprint that older versions recorded of the same backbone (`lingualift.backbone.identity`).
        """
        recorded = (self.provenance or {}).get("backbone") or {}
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        return {
            "name": name or recorded.get("name"),
            "revision": revision or recorded.get("revision"),
            "fingerprint": recorded.get("fingerprint"),
            "formerly": recorded.get("formerly"),
        }

    @property
    def initialisation(self) -> str | None:
        """Hash of the tensors that its training started from, where its provenance records it."""
        return (self.provenance or {}).get("initialisation")

    def named_as(self, modules: Collection[str]) -> Adapter:
        """The same adapter by a backbone's, or another adapter's, names of its modules.

        transformers 5 has other names than 4 for models that read images too; peft renames an adapter's when it loads
        it (https://github.com/huggingface/transformers/issues/38927).

        Args:
            modules: The names.

        Returns:
            This adapter, if it shares a name with them or no layout that is known brings them together.
        """
        if self.kind != "lora" or self.modules.keys() & set(modules):
            return self
        moved = same_modules(modules, self.modules)
        if not moved:
            return self
        other = Adapter(self.path)
        other.layout, other.structure = renamed(self.layout, self.structure, moved)
        return other

    def read(self, name: str) -> Array:
        """One tensor in its own number format, checked to be finite.

        Raises:
            UserError: no such tensor, a short file, NaN or infinity.
        """
        return self._file.read(self.layout.names.get(name, name))

    def floats(self, name: str) -> NDArray[np.float32]:
        """One tensor in float32; raises as `read`."""
        return as_float32(self.read(name))

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Hex sha256 of the tensors' file."""
        return _sha256(self.weights_file)

    @functools.cached_property
    def config_sha256(self) -> str:
        """Hex sha256 of the configuration's file."""
        return _sha256(self.path / CONFIG_FILE)

    def verify(self) -> None:
        """Compare the files with the hashes in `provenance.json`, and tensors with their copies.

        Where no hash of the tensors is recorded, they are read, to see that each is a number.

        Whatever uses an adapter's numbers calls this before: merging, inspecting, publishing, and all that puts an
        adapter on a backbone. A file that has not changed since is hashed once.

        Raises:
            UserError: a file is not what was recorded; a tensor differs from its copy, or holds NaN or infinity.
        """
        self.check_copies()
        if "weights_sha256" not in (self.provenance or {}):
            for name in self.tensors:
                self.read(name)
        self._compare("weights_sha256", self.weights_file, self.weights_sha256)
        self._compare("config_sha256", self.path / CONFIG_FILE, self.config_sha256)

    def check_copies(self) -> None:
        """Compare tensors that stand in the file under two names.

        Raises:
            UserError: they differ.
        """
        for copy, name in self.layout.copies.items():
            if self._file.read(copy).tobytes() != self.read(name).tobytes():
                found = f"tensor {copy!r} differs from {name!r}"
                raise UserError(self.weights_file, found, "one value", _RESTORE)

    def _compare(self, key: str, file: Path, found: str) -> None:
        recorded = (self.provenance or {}).get(key)
        if recorded is not None and recorded != found:
            mend = f"{_RESTORE}; if you changed it on purpose, remove {key} from {PROVENANCE_FILE}"
            found = f"is damaged or was changed (sha256 {found})"
            raise UserError(file, found, f"{recorded} as recorded", mend)


def open_adapter(path: Path | str) -> Adapter:
    """Open an adapter folder, or one in the hub's cache by its repository id.

    Args:
        path: A folder that peft or lingualift wrote; a folder of the hub's cache (`models--org--name`); or a
            repository id (`org/name`) that is in the cache already. Nothing is downloaded.

    Raises:
        UserError: there is no adapter, it is damaged or cannot be read, or it would load code.
    """
    try:
        return Adapter(_find(path))
    except OSError as error:
        mend = "check the path, and that you may read it"
        raise UserError(path, f"cannot be read ({error.strerror})", "an adapter folder", mend) from None


def one_layout(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters by the first one's names of modules, where one layout that is known brings them together."""
    first, *others = adapters
    if first.refusal:
        return [first, *others]
    return [first, *(other if other.refusal else other.named_as(first.modules) for other in others)]


def write_adapter(
    output: Path,
    *,
    config: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    arrays: Iterable[Array],
    provenance: Callable[[], Mapping[str, Any]],
    card: Callable[[], str],
) -> None:
    """Write an adapter folder that `PeftModel.from_pretrained` loads; whole, or not at all.

    Args:
        output: The folder; it must not exist.
        config: Content of `adapter_config.json`.
        specs: The tensors to come, in this order.
        arrays: One array for each spec; taken one at a time, so that they need not fit in memory together.
        provenance: Content of `provenance.json`, asked for when all tensors are written; hashes are added.
        card: The model card, asked for at the same time.

    Raises:
        UserError: the output exists or cannot be written, or an array could not be made.
    """
    with atomic_folder(output) as scratch:
        weights = write_tensors(scratch / WEIGHTS_FILE, specs, arrays)
        write_json(scratch / CONFIG_FILE, dict(config))
        write_text(scratch / "README.md", card())
        hashes = {"weights_sha256": weights, "config_sha256": sha256_file(scratch / CONFIG_FILE)}
        write_json(scratch / PROVENANCE_FILE, {**provenance(), **hashes})


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(path, f"holds {type(value).__name__}", "a JSON object", _RESTORE)
    return value


_TEXTS = (
    *("backbone.name", "backbone.revision", "backbone.fingerprint", "backbone.formerly", "kind", "method"),
    *("language", "beside_language", "initialisation", "weights_sha256", "config_sha256"),
)
"""Texts in `provenance.json` that are read."""


def _recorded(path: Path) -> dict[str, Any]:
    """Content of a `provenance.json`; what is read of it holds what it may."""
    content = _object(path)
    backbone = content.get("backbone") or {}
    named = backbone if isinstance(backbone, dict) else {}
    held = {**content, **{f"backbone.{key}": value for key, value in named.items()}}

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

    fits = {
        "backbone": isinstance(backbone, dict),
        "chat_template": isinstance(content.get("chat_template", False), bool | None),
        **{key: texts(content.get(key) or []) for key in ("labels", "languages")},
        **{key: isinstance(held.get(key), str | None) for key in _TEXTS},
    }
    for key, right in fits.items():
        if not right:
            raise UserError(path, f"{key} is not what lingualift writes", mend=_RESTORE)
    return content


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, *_: object) -> str:
    return sha256_file(path)


def _sha256(path: Path) -> str:
    """Hex sha256 of a file, which is read again where it has changed."""
    state = path.stat()
    return _hashed(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _weights_file(path: Path) -> Path:
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    if (path / PICKLE_FILE).is_file():
        mend = f"if you trust it, convert it in its folder: {_FROM_PICKLE}"
        raise UserError(path / PICKLE_FILE, "is a pickle, which can run code when read", WEIGHTS_FILE, mend)
    raise UserError(path, f"has no {WEIGHTS_FILE}", "an adapter folder as peft writes it", _RESTORE)


def _find(path: Path | str) -> Path:
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        return folder
    if (folder / "snapshots").is_dir():
        return _snapshot(folder)
    if folder.is_dir():
        below = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
        mend = f"name one of its sub-folders: {', '.join(below)}" if below else "check the path"
        raise UserError(folder, f"has no {CONFIG_FILE}", "an adapter folder", mend)
    if folder.is_absolute() or len(folder.parts) != 2:
        raise UserError(folder, "no such folder", "an adapter folder", "check the path")
    return _in_hub_cache(str(path))


def _snapshot(folder: Path) -> Path:
    reference = folder / "refs" / "main"
    names = [reference.read_text().strip()] if reference.is_file() else []
    names = names or sorted(entry.name for entry in (folder / "snapshots").iterdir())
    if len(names) != 1 or not (folder / "snapshots" / names[0] / CONFIG_FILE).is_file():
        raise UserError(folder, "holds no single adapter", "one snapshot", "name the folder of one snapshot")
    return folder / "snapshots" / names[0]


def _in_hub_cache(repository: str) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, CONFIG_FILE)
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        mend = f"check the path, or fetch it first: hf download {repository}"
        raise UserError(repository, "neither a folder nor in the hub's cache", "an adapter", mend)
    return Path(found).parent
