"""Where a policy is kept: ``modes_policy.json`` in a folder or in a hub repository."""

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError

from modes_fx.errors import PolicyError, listed

POLICY_FILE = "modes_policy.json"
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


def write_policy_text(directory: str | os.PathLike[str], text: str) -> Path:
    """Writes the policy file into a folder, all of it or nothing, and returns its path."""
    path = Path(directory) / POLICY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{POLICY_FILE}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def upload_policy_text(repo_id: str, text: str, *, private: bool | None, token: str | None) -> str:
    """Uploads the policy file to a hub repository, made if there is none; returns its URL."""
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_file(
        path_or_fileobj=text.encode(),
        path_in_repo=POLICY_FILE,
        repo_id=repo.repo_id,
        commit_message="Upload a MoDES-FX policy",
    )
    return str(repo)
