"""Publishing an adapter on the Hugging Face hub: what it needs and nothing else, and no path of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lingualift.adapters.card import CARD_FILE, HERE, shown
from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE, open_adapter
from lingualift.errors import UserError
from lingualift.provenance import PROVENANCE_FILE, read_json, sha256_bytes

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MENDS = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write there: https://huggingface.co/settings/tokens",
    404: "check the name of the account or organisation before the `/`",
}


def check_repository(repository: str) -> None:
    """Check what can be checked of a repository without asking the hub.

    Raises:
        UserError: no ORG/NAME, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not _REPOSITORY.fullmatch(repository):
            raise HFValidationError
        validate_repo_id(repository)
    except HFValidationError:
        mend = "write for example --push-to-hub my-name/sentiment-sw"
        raise UserError(repository, "is no name on the hub", "ORG/NAME", mend) from None
    if get_token() is None:
        raise UserError("hub", "nobody is logged in", "an account that may write", _MENDS[401])


def push(folder: Path | str, repository: str, *, private: bool = False) -> str:
    """Publish an adapter folder: configuration, tensors, model card and provenance, in one commit.

    Of paths in them only the last part is published. The login is the hub's own (`hf auth login` or HF_TOKEN).

    Args:
        folder: An adapter that lingualift wrote.
        repository: ORG/NAME; made if it is not there yet.
        private: Only for those who may see the account's private repositories.

    Returns:
        The address of the repository.

    Raises:
        UserError: no such adapter, no login, no permission, no network; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    check_repository(repository)
    path = Path(folder)
    files = published(path, repository)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    disable_progress_bars()
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        open_to_all = private and not api.model_info(repository).private
        if not open_to_all:
            api.create_commit(repository, operations, commit_message="Adapter made with lingualift")
    except (
        Exception
    ) as error:  # the hub's client raises many kinds; after each the folder can be pushed again
        raise _refused(path, repository, error) from error
    if open_to_all:
        found = "is public already, so --private would not keep the adapter private"
        raise UserError(repository, found, mend="choose another name, or leave --private out")
    return str(address)


def published(folder: Path, repository: str) -> dict[str, bytes | str]:
    """What `push` uploads: content, or the path of a file that goes as it is, by name.

    Raises:
        UserError: no adapter of lingualift's, or a file that is not the one it wrote.
    """
    adapter = open_adapter(folder)
    adapter.verify()
    if adapter.provenance is None or not (folder / CARD_FILE).is_file():
        mend = f"publish an adapter made elsewhere with: hf upload {repository} {folder}"
        raise UserError(folder, "has no provenance.json and model card", "an adapter of lingualift's", mend)
    config = _json(_public(adapter.config))
    provenance: dict[str, Any] = _public(read_json(folder / PROVENANCE_FILE))
    if "config_sha256" in provenance:
        provenance["config_sha256"] = sha256_bytes(config)
    card = _text(folder / CARD_FILE).replace(HERE, f'adapter = "{repository}"')
    return {
        **_first_stage(folder),
        CONFIG_FILE: config,
        WEIGHTS_FILE: str(adapter.weights_file),
        CARD_FILE: card.encode(),
        PROVENANCE_FILE: _json(provenance),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error})", "a model card", "restore or rewrite it") from None


def _first_stage(folder: Path) -> dict[str, bytes | str]:
    """The files of the adapter that a FLARE adapter stands beside."""
    if not (folder / FIRST_STAGE).is_dir():
        return {}
    first = open_adapter(folder / FIRST_STAGE)
    return {
        f"{FIRST_STAGE}/{CONFIG_FILE}": _json(_public(first.config)),
        f"{FIRST_STAGE}/{WEIGHTS_FILE}": str(first.weights_file),
    }


def _public(value: Any, key: str = "") -> Any:
    """A JSON value with nothing of a path but its last part."""
    if isinstance(value, Mapping):
        return {name: _public(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if key in ("base_model_name_or_path", "name"):
        return shown(value)
    kinds = (PurePosixPath, PureWindowsPath)
    last = next((kind(value).name for kind in kinds if kind(value).is_absolute()), value)
    return PurePosixPath(last).name if key == "path" else last


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refused(folder: Path, repository: str, error: Exception) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    mend = _MENDS.get(status or 0, "check the network and HF_HUB_OFFLINE")
    return UserError(
        repository,
        f"could not be published ({reason}); nothing is lost, the adapter is in {folder}",
        mend=f"{mend}; then: lingualift push {folder} {repository}",
    )
