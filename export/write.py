"""Write an artifact: programs of a model with a policy inside, verified, all of it or nothing."""

import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.export.calls import COMPONENTS, THETA, Inputs, image_sizes, images, is_cached
from modes_fx.export.components import component_inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.formats import Format, find_format
from modes_fx.export.manifest import Component, Manifest, Value, digests, versions
from modes_fx.export.oracle import artifact_error, with_thresholds
from modes_fx.export.program import GatedProgram, gated_program
from modes_fx.export.saving import time_ratio
from modes_fx.export.theta import thresholds
from modes_fx.fingerprint import config_hash
from modes_fx.policy import SkipPolicy
from modes_fx.policy_file import POLICY_FILE

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""The largest difference from the model, as a share of an output's largest value."""


def export(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Mapping[str, Inputs],
    folder: Path,
    *,
    format: str | Format = "pt2",
    name: str = "",
    allow_partial: bool = False,
    thresholds_as_inputs: bool = False,
) -> Manifest:
    """Export a model with a policy's thresholds inside, and compare the artifact with the model.

    Args:
        model: in eval mode, not attached; left as it was.
        policy: for this model.
        target: one of its targets.
        inputs: of each component, a name of ``modes_fx.export.calls.COMPONENTS``, one prompt's
            tensors as the processor returns them, of two samples or more; they say which arguments
            it takes and are what it is compared on.
        folder: where to write; must not exist yet, or be empty.
        format: a name of ``modes_fx.export.formats.FORMATS``, or a format with options of its own.
        name: where the model can be loaded from, for ``verify``.
        allow_partial: whether layers that cannot be rewritten may compute every expert.
        thresholds_as_inputs: whether every call takes them as ``theta``, as
            ``modes_fx.export.thresholds`` returns them for each target of the policy; for the
            formats pt2 and aoti.

    Returns:
        The manifest, which is in the folder as well.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model cannot be exported as asked, or the artifact computes something else
            than the model. Nothing is written then.
        OSError: writing failed. Nothing is left then.
    """
    writer = find_format(format) if isinstance(format, str) else format
    if unknown := sorted(inputs.keys() - set(COMPONENTS)):
        raise ExportError(
            f"there is no component {unknown[0]!r}; there are {', '.join(COMPONENTS)}"
        )
    if thresholds_as_inputs and not writer.tunable:
        raise ExportError(f"thresholds are constants in the format {writer.name}: use pt2 or aoti")
    policy.check_model(model)
    tolerance = TOLERANCE.get(model.dtype)
    if tolerance is None:
        raise ExportError(f"models in {model.dtype} cannot be exported: use float32 or bfloat16")
    with _new_folder(folder) as partial:
        policy.save_pretrained(partial / "policy", card=False)
        options = (tolerance, allow_partial, thresholds_as_inputs)
        parts = _Writer(model, policy, target, writer, partial, *options)
        components = {name: parts.write(name, prompt) for name, prompt in inputs.items()}
        files = digests(partial)
        manifest = Manifest(
            format=writer.name,
            model=name or str(model.config.name_or_path),
            model_config_hash=config_hash(model.config),
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            target=target,
            policy_sha256=files[f"policy/{POLICY_FILE}"],
            details=writer.details(),
            versions=versions(),
            tolerance=tolerance,
            components=components,
            files=files,
        )
        manifest.save(partial)
    return manifest


@dataclass(frozen=True)
class _Writer:
    """Writes the components of one artifact; see :func:`export`."""

    model: PreTrainedModel
    policy: SkipPolicy
    target: float
    format: Format
    folder: Path
    tolerance: float
    allow_partial: bool
    tunable: bool

    def write(self, component: str, prompt: Inputs) -> Component:
        """Write a component and compare it with the model.

        Raises:
            ExportError: it cannot be written, or computes something else.
        """
        cached = is_cached(component)
        inputs = component_inputs(self.model, component, prompt)
        if self.tunable:
            inputs[THETA] = thresholds(self.policy, self.target).to(inputs["input_ids"].device)
        try:
            gated = gated_program(
                self.model,
                self.policy,
                self.target,
                inputs,
                cached=cached,
                allow_partial=self.allow_partial,
            )
            self.format.write(gated, inputs, self.folder, component)
        except ExportError as reason:
            raise ExportError(f"{component}: {reason}") from reason
        loaded = self.format.load(self.folder, component)
        error = artifact_error(loaded, self.model, self.policy, self.target, inputs, cached=cached)
        if not error <= self.tolerance:
            raise ExportError(
                f"{component}: the artifact's outputs differ from the model's by {error:.2g} of "
                f"the largest value, more than {self.tolerance:g}. Please report the model's type"
            )
        keeping = (
            functools.partial(with_thresholds, loaded, self.policy, None)
            if self.tunable
            else self.format.keeping(gated, self.folder, component)
        )
        taken, returned = _signature(gated, inputs, self.format.fixes_images)
        return Component(
            inputs=taken,
            outputs=returned,
            layers=len(gated.layers),
            rewritten=sum(layer.status == "rewritten" for layer in gated.layers),
            max_error=error,
            checked_in=self.format.runs_in,
            time_ratio=None if keeping is None else time_ratio(loaded, keeping, gated, inputs),
            theta_layers=list(self.policy.alpha) if self.tunable else [],
        )


def _signature(
    gated: GatedProgram, inputs: Inputs, fixes_images: bool
) -> tuple[list[Value], list[Value]]:
    signature = gated.program.graph_signature
    nodes = {node.name: node for node in gated.program.graph.nodes}
    sizes = image_sizes(inputs) if fixes_images else {}
    pixels = images(inputs) if sizes else {}
    taken = [
        _value(name, value, fixed=value.tolist())
        if name in sizes
        else _value(name, value if name in pixels else nodes[str(node)].meta["val"])
        for (name, value), node in zip(inputs.items(), signature.user_inputs, strict=True)
    ]
    returned = zip(gated.outputs, signature.user_outputs, strict=True)
    return taken, [_value(name, nodes[str(node)].meta["val"]) for name, node in returned]


def _value(name: str, value: Tensor, fixed: list[Any] | None = None) -> Value:
    sizes: list[int | str] = [s if isinstance(s, int) else str(s) for s in value.shape]
    dtype = str(value.dtype).removeprefix("torch.")
    return Value(name=name, dtype=dtype, shape=sizes, fixed=fixed)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes ``folder`` once all is well, and is gone if not."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is there already: name a new folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
