"""Where a policy is kept: ``modes_policy.json`` in a folder or in a hub repository.

Mean outputs lie beside it under a name with their digest, so that a folder whose policy is being
replaced always holds the file that its policy names.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

from modes_fx.errors import PolicyError, listed

POLICY_FILE = "modes_policy.json"
CARD_FILE = "README.md"
CARD_MARKER = "<!-- Written by modes-fx. Without this line it is yours and is not replaced. -->"
MEANS_FILES = "modes_means-*.safetensors"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class NoPolicyError(PolicyError):
    """A folder or a hub repository is there, and holds no policy."""


class UnreachableHubError(PolicyError):
    """A hub repository is not there, may not be read, or cannot be reached."""


def is_hub_id(name: str) -> bool:
    """Tells whether a name has the form of a hub repository's id, "namespace/name"."""
    return _HUB_ID.fullmatch(name) is not None


def locate_policy(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Finds the policy file of a folder, or fetches that of a hub repository.

    Args:
        source: A folder, or the id of a Hugging Face hub repository, "namespace/name".
        revision: The branch, tag or commit in the hub repository.

    Raises:
        NoPolicyError: The folder or the repository holds none.
        UnreachableHubError: The hub cannot be reached, or has no such repository.
        PolicyError: There is no such folder.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / POLICY_FILE
        if not path.is_file():
            raise NoPolicyError(f"the folder {str(folder)!r} holds no {POLICY_FILE}")
        return path
    if not isinstance(source, str) or not is_hub_id(source):
        raise PolicyError(
            f"there is no folder {str(folder)!r} (nor is that the id of a hub repository, "
            f'"namespace/name")'
        )
    try:
        return Path(hf_hub_download(source, POLICY_FILE, revision=revision))
    except RemoteEntryNotFoundError as error:
        raise NoPolicyError(
            f"there is no folder {source!r}, and the hub repository of that name holds no "
            f"{POLICY_FILE}"
        ) from error
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreachableHubError(
            f"there is no folder {source!r}, and {POLICY_FILE} could not be fetched from the hub "
            f"repository of that name: {reason}"
        ) from error


def read_fields(path: Path, required: set[str]) -> dict[str, Any]:
    """Reads the fields of a policy file, without judging their values.

    Raises:
        PolicyError: The file is not a JSON object, or lacks a required field.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise PolicyError(
            f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise PolicyError(f"not UTF-8 text at byte {error.start}") from None
    if not isinstance(fields, dict):
        raise PolicyError(f"holds a JSON {type(fields).__name__} where an object is expected")
    if missing := required - fields.keys():
        raise PolicyError(f"lacks the fields {listed(missing)}")
    return fields


def means_file(sha256: str) -> str:
    """Names the file of mean outputs with a digest."""
    return MEANS_FILES.replace("*", sha256[:16])


def locate_means(
    source: str | os.PathLike[str], revision: str | None, policy: Path, sha256: str
) -> Path:
    """Finds the mean outputs beside a policy that ``locate_policy`` found, or fetches them.

    Raises:
        PolicyError: The hub cannot be reached.
    """
    beside = policy.with_name(means_file(sha256))
    if Path(source).is_dir() or beside.is_file():
        return beside
    try:
        return Path(hf_hub_download(str(source), beside.name, revision=revision))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolicyError(
            f"{beside.name} could not be fetched from {source!r}: {reason}"
        ) from error


def write_policy(directory: str | os.PathLike[str], files: Mapping[str, bytes]) -> Path:
    """Writes a policy's files into a folder, each all of it or nothing.

    Args:
        directory: The folder; made if there is none.
        files: Content by name, the policy file last: what it names is there before it is.

    Returns:
        The path of the policy file.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    for old in folder.glob(MEANS_FILES):
        if old.name not in files:
            old.unlink()
    return folder / POLICY_FILE


def write_card(directory: str | os.PathLike[str], card: str) -> None:
    """Writes a policy's card into its folder, unless a card lies there that is not ours."""
    path = Path(directory) / CARD_FILE
    if not path.exists() or CARD_MARKER in path.read_text(encoding="utf-8", errors="replace"):
        write_whole(path, card.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def upload_policy(
    repo_id: str,
    files: Mapping[str, bytes],
    card: Callable[[str], str],
    *,
    private: bool | None,
    token: str | None,
) -> str:
    """Uploads a policy's files in one commit to a hub repository, made if there is none.

    Args:
        repo_id: Of the repository, with or without a namespace.
        files: Content by name, the policy file last.
        card: Writes the card for a full repository id; it replaces no card that is not ours.
        private: Whether a repository that is made is private; None: as the account has it.
        token: Of the account; None: the one that is logged in.

    Returns:
        The repository's URL.
    """
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    if _card_is_ours(api, repo.repo_id):
        files = {CARD_FILE: card(repo.repo_id).encode(), **files}
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repo.repo_id, operations, commit_message="Upload a MoDES-FX policy")
    return str(repo)


def _card_is_ours(api: HfApi, repo_id: str) -> bool:
    if not api.file_exists(repo_id, CARD_FILE):
        return True
    path = Path(api.hf_hub_download(repo_id, CARD_FILE))
    return CARD_MARKER in path.read_text(encoding="utf-8", errors="replace")
