"""Write an artifact: programs of a model with a policy inside, verified, all of it or nothing."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.fx import Node
from transformers import PreTrainedModel

from modes_fx.export.errors import ExportError
from modes_fx.export.formats import Format, find_format
from modes_fx.export.manifest import Component, Manifest, Value, digests, versions
from modes_fx.export.oracle import gated_logits, largest_error
from modes_fx.export.program import GatedProgram, Inputs, exportable_inputs, gated_program
from modes_fx.export.saving import time_ratio
from modes_fx.fingerprint import config_hash
from modes_fx.policy import SkipPolicy
from modes_fx.policy_file import POLICY_FILE

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""The largest difference from the model, as a share of the largest logit."""


def export(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Mapping[str, Inputs],
    folder: Path,
    *,
    format: str = "pt2",
    name: str = "",
    allow_partial: bool = False,
) -> Manifest:
    """Export a model with a policy's thresholds inside, and compare the artifact with the model.

    Args:
        model: in eval mode, not attached; left as it was.
        policy: for this model.
        target: one of its targets.
        inputs: of each component, one call's tensors as the processor returns them, of two samples
            or more; they say which arguments it takes and are what it is compared on.
        folder: where to write; must not exist yet, or be empty.
        format: a name of ``modes_fx.export.formats.FORMATS``.
        name: where the model can be loaded from, for ``verify``.
        allow_partial: whether layers that cannot be rewritten may compute every expert.

    Returns:
        The manifest, which is in the folder as well.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model cannot be exported as asked, or the artifact computes something else
            than the model. Nothing is written then.
        OSError: writing failed. Nothing is left then.
    """
    writer = find_format(format)
    policy.check_model(model)
    tolerance = TOLERANCE.get(model.dtype)
    if tolerance is None:
        raise ExportError(f"models in {model.dtype} cannot be exported: use float32 or bfloat16")
    with _new_folder(folder) as partial:
        policy.save_pretrained(partial / "policy", card=False)
        components = {
            component: _component(
                model, policy, target, given, partial, writer, component, tolerance, allow_partial
            )
            for component, given in inputs.items()
        }
        files = digests(partial)
        manifest = Manifest(
            format=format,  # type: ignore[arg-type]
            model=name or str(model.config.name_or_path),
            model_config_hash=config_hash(model.config),
            dtype=str(model.dtype).removeprefix("torch."),
            target=target,
            policy_sha256=files[f"policy/{POLICY_FILE}"],
            instruction_set=writer.instruction_set(),
            versions=versions(),
            tolerance=tolerance,
            components=components,
            files=files,
        )
        manifest.save(partial)
    return manifest


def _component(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    given: Inputs,
    folder: Path,
    writer: Format,
    component: str,
    tolerance: float,
    allow_partial: bool,
) -> Component:
    inputs = exportable_inputs(model, given)
    gated = gated_program(model, policy, target, inputs, allow_partial=allow_partial)
    writer.write(gated, inputs, folder, component)
    loaded = writer.load(folder, component)
    expected = gated_logits(model, policy, target, inputs)
    error = largest_error(loaded(inputs), expected, given.get("attention_mask"))
    if not error <= tolerance:
        raise ExportError(
            f"{component}: the artifact's logits differ from the model's by {error:.2g} of the "
            f"largest one, more than {tolerance:g}. Please report the model's type"
        )
    taken, output = _signature(gated, inputs)
    return Component(
        inputs=taken,
        output=output,
        layers=len(gated.layers),
        rewritten=sum(layer.status == "rewritten" for layer in gated.layers),
        max_error=error,
        time_ratio=time_ratio(gated, inputs),
    )


def _signature(gated: GatedProgram, inputs: Inputs) -> tuple[list[Value], Value]:
    nodes = {node.name: node for node in gated.program.graph.nodes}
    (output,) = gated.program.graph_signature.user_outputs
    return [_value(name, nodes[name]) for name in inputs], _value("logits", nodes[str(output)])


def _value(name: str, node: Node) -> Value:
    value = node.meta["val"]
    sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
    return Value(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=sizes)


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
