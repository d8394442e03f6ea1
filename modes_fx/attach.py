"""attach, set_target, detach: put a policy's thresholds and the modality hook on a model.

Attaching changes no weight and no class. It adds two small buffers to every module that owns
experts, a pre-hook there (the marker that the backend looks for), and a pre- and a post-hook on the
model that keep the modality buffer. Where a module loops over its experts in a way that no graph
can hold, its ``forward`` gives way to one op that computes the same. ``detach`` undoes all of it.
Both make torch capture compiled models anew.
"""

import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from modes_fx.blocks import capture_apart, find_blocks
from modes_fx.compensation import make_room_for_means, policy_means, set_means
from modes_fx.errors import MatchError
from modes_fx.hooks import (
    ATTACHMENT,
    COUNTS,
    GATE,
    MEAN_SUMS,
    MEANS,
    THETA,
    Attachment,
    GateOptions,
    attach_layer,
    hook_modality,
    keep_all_theta,
    mark_input,
)
from modes_fx.kernels.triton.config import expect_skip_ratio
from modes_fx.loops import ReplacedLoop
from modes_fx.modality import DEFAULT_MAX_TOKENS, ModalityBuffer, TokenIds
from modes_fx.passes.loops.call import Loop
from modes_fx.passes.loops.find import find_loops, owns_stack
from modes_fx.policy import SkipPolicy
from modes_fx.policy_stored import stored_policy
from modes_fx.prepack import PackedLoop, find_packable, warn_unpacked
from modes_fx.sources import find_decoder_layers, find_tower_layers


def find_expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own experts, by path, in the model's order.

    They are found by structure: two or more parameters of their own of shape ``[E, ., .]``, or a
    loop over experts that can run as one op.
    """
    if is_attached(model):
        return dict(attached(model).layers)
    return _expert_modules(model, find_loops(model).loops)


def _expert_modules(model: nn.Module, loops: Container[str]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path in loops or (owns_stack(module) and not inside):
            found[path] = module
    return found


def attach(
    model: nn.Module,
    policy: SkipPolicy | Literal["stored"] | None = "stored",
    *,
    target: float | None = None,
    count_pairs: bool = False,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    strict: bool = False,
    prepack: bool = False,
) -> nn.Module:
    """Make a model ready for ``modes_backend``: thresholds on its layers, modality on its tokens.

    Args:
        model: a transformers model or the compiled wrapper of one; changed in place, undone by
            :func:`detach`.
        policy: the calibrated constants; "stored": those that lie beside the model, where
            ``policy.save_pretrained`` wrote them into its folder or ``push_to_hub`` into its
            repository; every expert is kept where there are none, or with None.
        target: a calibrated target of the policy; by default its smallest one. Needs a policy.
        count_pairs: add up how many pairs are kept (see :func:`pair_counts`); costs a little time.
        max_tokens: the most tokens (batch * sequence) of one call.
        strict: make it an error, not a warning, where a layer runs outside ``modes_backend``; the
            backend's own option of that name covers what it captures.
        prepack: keep the experts' weights in the order in which the CPU kernels read them, instead
            of the model's; faster, and :func:`detach` undoes it. Memory holds each weight once,
            and while it is packed twice.

    Returns:
        ``model``.

    Raises:
        PolicyError: the policy is for another model, or has no such target; or a target is given
            and no policy, and none is stored with the model.
        ValueError: the model is attached already, or has no module that owns experts.
        MatchError: under ``strict``, where a loop over experts cannot be rewritten.
    """
    wrapper, model = model, _inside(model)
    if is_attached(model):
        raise ValueError("the model is attached already: call modes_fx.detach(model) first")
    found = find_loops(model)
    layers = _expert_modules(model, found.loops)
    if not layers:
        loops = [f"{path} loops over experts, but {why}" for path, why in found.left.items()]
        nothing = "no module owns stacked expert weights of shape [E, ., .] or loops over experts"
        raise ValueError(
            f"{type(model).__name__} has no MoE layer to skip experts in: "
            f"{'; '.join(loops) or nothing}"
        )
    if found.left:
        _tell_left(found.left, strict)
    if policy == "stored":
        policy = stored_policy(model, required=target is not None)
    if policy is not None:
        policy.check_model(model)
        if target is None:
            target = policy.targets[0]
    thetas = _thresholds(policy, target, layers)
    special = policy.special_token_ids if policy and policy.special_tokens == "keep" else ()
    token_ids = TokenIds.from_config(getattr(model, "config", None), special)
    devices = dict.fromkeys(next(layer.parameters()).device for layer in layers.values())
    attachment = Attachment(policy, target, layers, ModalityBuffer(devices, max_tokens))
    gate = GateOptions(
        share=(policy.share if policy else None) or "auto",
        kept_mass_exponent=policy.kept_mass_exponent if policy else 0.0,
        min_k=policy.min_k if policy else 0,
        modality=attachment.modality,
        strict=strict,
    )
    gates = dict.fromkeys(layers, gate)
    if in_decoder := find_decoder_layers(model, layers):
        attachment.decoder_modality = ModalityBuffer(devices, max_tokens)
        of_decoder = replace(gate, modality=attachment.decoder_modality)
        gates |= dict.fromkeys(in_decoder, of_decoder)
    for path, modality in find_tower_layers(model, layers).items():
        gates[path] = replace(gate, modality=ModalityBuffer(devices, max_tokens, modality))
    packable: dict[str, Loop] = {}
    if prepack:
        packable, unpacked = find_packable(layers, found.loops)
        warn_unpacked(unpacked)
    setattr(model, ATTACHMENT, attachment)
    for path, layer in layers.items():
        attach_layer(path, layer, gates[path], count_pairs)
        if path in packable:
            attachment.loops[path] = PackedLoop(layer, packable[path])
        elif path in found.loops:
            attachment.loops[path] = ReplacedLoop(layer, found.loops[path])
        else:
            attachment.handles.append(mark_input(layer))
    attachment.blocks += map(capture_apart, find_blocks(model, layers))
    attachment.left.update(found.left)
    hook_modality(model, attachment, token_ids)
    set_thetas(model, thetas)
    make_room_for_means(attachment, policy)
    set_means(attachment, policy_means(policy, target, layers))
    expect_skip_ratio(target or 0.0)
    _forget_captures()
    return wrapper


def set_target(model: nn.Module, target: float | None) -> None:
    """Switch to another calibrated target of the attached policy; nothing is recompiled.

    Args:
        model: an attached model, or the compiled wrapper of one.
        target: a target of its policy; None keeps every expert.

    Raises:
        PolicyError: the policy has no such target.
        ValueError: the model is not attached, or has no policy to take a target from.
    """
    attachment = attached(model)
    set_thetas(model, _thresholds(attachment.policy, target, attachment.layers))
    set_means(attachment, policy_means(attachment.policy, target, attachment.layers))
    attachment.target = target
    expect_skip_ratio(target or 0.0)


def set_thetas(model: nn.Module, thetas: Mapping[str, Tensor]) -> None:
    """Write thresholds directly, as calibration does: ``{layer path: [M] float32 by code}``.

    Raises:
        ValueError: the model is not attached, or has no such layer.
    """
    layers = attached(model).layers
    for path, theta in thetas.items():
        if path not in layers:
            raise ValueError(f"the model has no MoE layer {path!r}; it has {', '.join(layers)}")
        getattr(layers[path], THETA).copy_(theta)


def pair_counts(model: nn.Module, *, reset: bool = False) -> dict[str, Tensor]:
    """Return, by layer path, int64 ``[M, 2]``: all pairs and kept pairs of each modality code.

    Args:
        model: a model attached with ``count_pairs=True``.
        reset: start counting anew afterwards.

    Raises:
        ValueError: the model is not attached, or was attached without ``count_pairs=True``.
    """
    counts = {path: getattr(layer, COUNTS) for path, layer in attached(model).layers.items()}
    if not all(count.numel() for count in counts.values()):
        raise ValueError("pairs are not counted: use modes_fx.attach(model, ..., count_pairs=True)")
    copies = {path: count.clone() for path, count in counts.items()}
    if reset:
        for count in counts.values():
            count.zero_()
    return copies


def attached(model: nn.Module) -> Attachment:
    """Return what is attached to a model, or to the model inside a compiled wrapper.

    Raises:
        ValueError: the model is not attached.
    """
    attachment: Attachment | None = getattr(_inside(model), ATTACHMENT, None)
    if attachment is None:
        raise ValueError(f"{type(model).__name__} is not attached: call modes_fx.attach first")
    return attachment


def is_attached(model: nn.Module) -> bool:
    """Return whether a model, or the model inside a compiled wrapper, is attached."""
    return hasattr(_inside(model), ATTACHMENT)


def detach(model: nn.Module) -> nn.Module:
    """Undo :func:`attach`.

    Raises:
        ValueError: the model is not attached.
    """
    attachment = attached(model)
    for handle in attachment.handles:
        handle.remove()
    for block in attachment.blocks:
        block.remove()
    for loop in attachment.loops.values():
        loop.remove()
    for layer in attachment.layers.values():
        for name in (THETA, COUNTS, MEANS, MEAN_SUMS, GATE):
            delattr(layer, name)
    delattr(_inside(model), ATTACHMENT)
    expect_skip_ratio(0.0)
    _forget_captures()
    return model


def _tell_left(left: Mapping[str, str], strict: bool) -> None:
    path, reason = next(iter(left.items()))
    message = (
        f"of the model's loops over experts, {len(left)} cannot be rewritten and compute every "
        f"expert; the first is {path}: {reason}. See modes_fx.explain(model, **inputs)"
    )
    if strict:
        raise MatchError(f"strict: {message}")
    warnings.warn(message, stacklevel=3)


def _forget_captures() -> None:
    # Dynamo does not guard on hooks: what it captured before would go on without the new ones.
    torch.compiler.reset()


def _inside(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _thresholds(
    policy: SkipPolicy | None, target: float | None, paths: Iterable[str]
) -> dict[str, Tensor]:
    paths = list(paths)
    if policy is None:
        if target is not None:
            raise ValueError(
                f"target {target} needs a policy: modes_fx.attach(model, policy), with a policy "
                "from SkipPolicy.from_pretrained or modes_fx.calibrate"
            )
        return dict.fromkeys(paths, keep_all_theta())
    known = {path: policy.theta(path, target) for path in policy.alpha}
    if uncovered := [path for path in paths if path not in known]:
        warnings.warn(
            f"the policy has no constants for {len(uncovered)} of {len(paths)} MoE layers (the "
            f"first: {uncovered[0]}): nothing is skipped there",
            stacklevel=3,
        )
    return {path: known.get(path, keep_all_theta()) for path in paths}
