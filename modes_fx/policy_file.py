"""Where a policy is kept: ``modes_policy.json`` in a folder or in a hub repository.

Mean outputs lie beside it under a name with their digest, so that a folder whose policy is being
replaced always holds the file that its policy names.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError

from modes_fx.errors import PolicyError, listed

POLICY_FILE = "modes_policy.json"
MEANS_FILES = "modes_means-*.safetensors"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate_policy(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Finds the policy file of a folder, or fetches that of a hub repository.

    Args:
        source: A folder, or the id of a Hugging Face hub repository, "namespace/name".
        revision: The branch, tag or commit in the hub repository.

    Raises:
        PolicyError: There is none, or the hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / POLICY_FILE
        if not path.is_file():
            raise PolicyError(f"the folder {str(folder)!r} holds no {POLICY_FILE}")
        return path
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise PolicyError(
            f"there is no folder {str(folder)!r} (nor is that the id of a hub repository, "
            f'"namespace/name")'
        )
    try:
        return Path(hf_hub_download(source, POLICY_FILE, revision=revision))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolicyError(
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
        partial = folder / f".{name}.{os.getpid()}"
        try:
            partial.write_bytes(content)
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    for old in folder.glob(MEANS_FILES):
        if old.name not in files:
            old.unlink()
    return folder / POLICY_FILE


def upload_policy(
    repo_id: str, files: Mapping[str, bytes], *, private: bool | None, token: str | None
) -> str:
    """Uploads a policy's files in one commit to a hub repository, made if there is none.

    Returns:
        The repository's URL.
    """
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repo.repo_id, operations, commit_message="Upload a MoDES-FX policy")
    return str(repo)
