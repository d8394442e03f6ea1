"""The policy that lies beside a model: in its folder, or at its commit of a hub repository."""

import logging
import warnings
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from torch import nn

from modes_fx.errors import PolicyError
from modes_fx.policy import SkipPolicy
from modes_fx.policy_file import POLICY_FILE, NoPolicyError, UnreachableHubError, is_hub_id

_LOGGER = logging.getLogger(__name__)
_OF_EVERY_MODEL = "config.json"
"""What loading a model from a hub leaves in the cache, whatever the model."""


def stored_policy(model: nn.Module, *, required: bool = False) -> SkipPolicy | None:
    """Reads the policy that is stored with a model, if there is one.

    It is looked for where transformers loaded the model from (``model.config.name_or_path``): in
    that folder, or, of a hub repository, at the commit that the cache holds of its main branch,
    which is what the weights are of unless a ``revision`` was asked for.

    Args:
        model: A transformers model.
        required: Whether it is an error that there is none.

    Raises:
        PolicyError: What lies there is not a policy, or is of another model. If it is required,
            also: there is none, or nobody can know; says where it was looked for.
    """
    name = str(getattr(getattr(model, "config", None), "name_or_path", None) or "")
    in_folder, commit = bool(name) and Path(name).is_dir(), _commit(name)
    if not in_folder and commit is None:
        if not required:
            return None
        origin = f"loaded from {name!r}, which is" if name else "loaded from"
        raise PolicyError(
            f"no policy was given, and none can be stored with this {type(model).__name__}: it was "
            f"{origin} no folder and no hub repository in the cache. Pass a policy, from "
            "SkipPolicy.from_pretrained or modes_fx.calibrate"
        )
    try:
        policy = _read(name, commit)
    except NoPolicyError as error:
        if not required:
            return None
        raise PolicyError(
            f"no policy was given, and none is stored with the model: {error}. Pass one, or write "
            "it there with policy.save_pretrained or push_to_hub"
        ) from None
    except UnreachableHubError as error:
        if required:
            raise
        warnings.warn(
            f"whether a policy is stored with the model is not known, so every expert is kept: "
            f"{error}. Pass a policy, or None to keep every expert",
            stacklevel=3,
        )
        return None
    try:
        policy.check_model(model)
    except PolicyError as error:
        raise PolicyError(
            f"the policy stored in {name!r} does not fit the model: {error}. To keep every expert, "
            "pass None: modes_fx.attach(model, None)"
        ) from None
    _LOGGER.info("the policy stored in %s is used", name)
    return policy


def _read(name: str, commit: str | None) -> SkipPolicy:
    if commit is not None:
        known = try_to_load_from_cache(name, POLICY_FILE, revision=commit)
        if known is not None and not isinstance(known, str):
            raise NoPolicyError(f"the hub repository {name!r} holds no {POLICY_FILE} at {commit}")
    return SkipPolicy.from_pretrained(name, commit)


def _commit(name: str) -> str | None:
    """The commit that the cache holds of a hub repository's main branch, None without."""
    if Path(name).is_dir() or not is_hub_id(name):
        return None
    config = try_to_load_from_cache(name, _OF_EVERY_MODEL)
    return Path(config).parent.name if isinstance(config, str) else None
