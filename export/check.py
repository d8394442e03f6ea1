"""Check an artifact: its files, and what it computes on inputs that it has never seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from modes_fx.export.calls import THETA, Inputs, is_cached
from modes_fx.export.components import component_inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.formats import find_format
from modes_fx.export.manifest import Manifest
from modes_fx.export.oracle import artifact_error
from modes_fx.export.theta import thresholds
from modes_fx.fingerprint import config_hash
from modes_fx.policy import SkipPolicy


class Check(NamedTuple):
    """One comparison.

    Attributes:
        component: of the artifact.
        target: of the policy: the one it was exported for, or each where it takes thresholds.
        shapes: of its inputs, by name.
        error: the largest difference from the model, as a share of the output's largest value.
        agrees: whether that is within the artifact's tolerance.
    """

    component: str
    target: float
    shapes: dict[str, list[int]]
    error: float
    agrees: bool


def verify(
    folder: Path, model: PreTrainedModel, inputs: Mapping[str, Sequence[Inputs]]
) -> list[Check]:
    """Compare an artifact with the model it was made from.

    Args:
        folder: of the artifact.
        model: with the same weights.
        inputs: prompts of each component, as the processor returns them.

    Returns:
        One check for each call and target.

    Raises:
        ExportError: a file of the artifact was changed, or it is of another model, or it cannot be
            run here.
    """
    manifest = Manifest.load(folder)
    if config_hash(model.config) != manifest.model_config_hash:
        raise ExportError(f"{folder} was exported from another model than this: {manifest.model}")
    policy = SkipPolicy.from_pretrained(folder / "policy")
    writer = find_format(manifest.format)
    checks = []
    for component, written in manifest.components.items():
        try:
            loaded = writer.load(folder, component)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            made = "; ".join(f"{name} {value}" for name, value in manifest.details.items())
            raise ExportError(
                f"{component} cannot be loaded here: {reason} (exported on {manifest.machine}"
                f"{'; ' if made else ''}{made})"
            ) from error
        cached = is_cached(component)
        for given in inputs[component]:
            taken = component_inputs(model, component, given)
            written.check(taken)
            for target in policy.targets if written.theta_layers else [manifest.target]:
                if written.theta_layers:
                    taken[THETA] = thresholds(policy, target).to(taken["input_ids"].device)
                off = artifact_error(loaded, model, policy, target, taken, cached=cached)
                shapes = {name: list(value.shape) for name, value in taken.items()}
                checks.append(Check(component, target, shapes, off, off <= manifest.tolerance))
    return checks
