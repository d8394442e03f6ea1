"""attach, set_target, detach: put a policy's thresholds and the modality hook on a model.

Attaching changes no weight and no class. It adds two small buffers to every module that owns
experts, a pre-hook there (the marker that the backend looks for), and a pre- and a post-hook on the
model that keep the modality buffer; ``detach`` removes all of it.
"""

import inspect
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch.utils.hooks import RemovableHandle

from modes_fx import ops as ops  # registers the ops that the hooks call
from modes_fx.modality import DEFAULT_MAX_TOKENS, ModalityBuffer, TokenIds, modality_codes
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import Modality

_ATTACHMENT = "_modes_attachment"
_THETA = "modes_theta"
_COUNTS = "modes_counts"
_GATE = "_modes_gate"

RECOMPILES_PER_LAYER = 16
"""How often each layer may be captured: prefill and decode, some shapes and numbers of images."""


@dataclass(frozen=True)
class GateOptions:
    """What a layer's marker carries besides thresholds: the policy's options and the codes."""

    share: str
    kept_mass_exponent: float
    min_k: int
    modality: ModalityBuffer


@dataclass
class Attachment:
    """What ``attach`` put on a model.

    Attributes:
        policy: the policy in force; None keeps every expert.
        target: the calibrated target in force; None keeps every expert.
        layers: the modules that own experts, by path.
        modality: the modality of the tokens of the call in flight.
        handles: the hooks to remove.
        in_flight: held during a call, because two calls would share the modality buffer.
        caller: the thread that made the call in flight.
        call: what ends with the call in flight.
    """

    policy: SkipPolicy | None
    target: float | None
    layers: Mapping[str, nn.Module]
    modality: ModalityBuffer
    handles: list[RemovableHandle] = field(default_factory=list)
    in_flight: threading.Lock = field(default_factory=threading.Lock)
    caller: int | None = None
    call: ExitStack = field(default_factory=ExitStack)


def find_expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own stacked experts, by path, in the model's order.

    They are found by structure: two or more parameters of their own of shape ``[E, ., .]``.
    """
    found = {}
    for path, module in model.named_modules():
        stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3]
        if len(stacked) >= 2 and len(set(stacked)) == 1 and stacked[0] > 1:
            found[path] = module
    return found


def attach(
    model: nn.Module,
    policy: SkipPolicy | None = None,
    *,
    target: float | None = None,
    count_pairs: bool = False,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> nn.Module:
    """Make a model ready for ``modes_backend``: thresholds on its layers, modality on its tokens.

    Args:
        model: a transformers model; changed in place, undone by :func:`detach`.
        policy: the calibrated constants; None attaches thresholds that keep every expert.
        target: a calibrated target of the policy; by default its smallest one.
        count_pairs: add up how many pairs are kept (see :func:`pair_counts`); costs a little time.
        max_tokens: the most tokens (batch * sequence) of one call.

    Returns:
        ``model``.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ValueError: the model is attached already, or has no module that owns experts.
    """
    if hasattr(model, _ATTACHMENT):
        raise ValueError("the model is attached already: call modes_fx.detach(model) first")
    layers = find_expert_modules(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer that modes-fx knows how to skip in: no module "
            "owns two or more stacked expert weights of shape [E, ., .]. Run modes_fx.explain"
            "(model, **inputs) to see what its graphs contain"
        )
    if policy is not None:
        policy.check_model(model)
        if target is None:
            target = policy.targets[0]
    special = policy.special_token_ids if policy and policy.special_tokens == "keep" else ()
    token_ids = TokenIds.from_config(model.config, special)
    devices = dict.fromkeys(next(layer.parameters()).device for layer in layers.values())
    attachment = Attachment(policy, target, layers, ModalityBuffer(devices, max_tokens))
    gate = GateOptions(
        share=(policy.share if policy else None) or "auto",
        kept_mass_exponent=policy.kept_mass_exponent if policy else 0.0,
        min_k=policy.min_k if policy else 0,
        modality=attachment.modality,
    )
    setattr(model, _ATTACHMENT, attachment)
    for layer in layers.values():
        _attach_layer(layer, gate, count_pairs, attachment.handles)
    _hook_modality(model, attachment, token_ids)
    set_target(model, target)
    return model


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
    if attachment.policy is None:
        if target is not None:
            raise ValueError(
                f"target {target} needs a policy: modes_fx.attach(model, policy), with a policy "
                "from SkipPolicy.from_pretrained or modes_fx.calibrate"
            )
        thetas = dict.fromkeys(attachment.layers, keep_all_theta())
    else:
        policy = attachment.policy
        known = {path: policy.theta(path, target) for path in policy.alpha}
        thetas = {path: known.get(path, keep_all_theta()) for path in attachment.layers}
        if uncovered := [path for path in attachment.layers if path not in known]:
            warnings.warn(
                f"the policy has no constants for {len(uncovered)} of {len(attachment.layers)} MoE "
                f"layers (the first: {uncovered[0]}): nothing is skipped there",
                stacklevel=2,
            )
    set_thetas(model, thetas)
    attachment.target = target


def set_thetas(model: nn.Module, thetas: Mapping[str, Tensor]) -> None:
    """Write thresholds directly, as calibration does: ``{layer path: [M] float32 by code}``.

    Raises:
        ValueError: the model is not attached, or has no such layer.
    """
    layers = attached(model).layers
    for path, theta in thetas.items():
        if path not in layers:
            raise ValueError(f"the model has no MoE layer {path!r}; it has {', '.join(layers)}")
        getattr(layers[path], _THETA).copy_(theta)


def keep_all_theta() -> Tensor:
    """Return thresholds ``[M]`` that skip nothing but padding."""
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.PADDING] = torch.inf
    return theta


def pair_counts(model: nn.Module, *, reset: bool = False) -> dict[str, Tensor]:
    """Return, by layer path, int64 ``[M, 2]``: all pairs and kept pairs of each modality code.

    Args:
        model: a model attached with ``count_pairs=True``.
        reset: start counting anew afterwards.

    Raises:
        ValueError: the model is not attached, or was attached without ``count_pairs=True``.
    """
    counts = {path: getattr(layer, _COUNTS) for path, layer in attached(model).layers.items()}
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
    attachment = getattr(model, _ATTACHMENT, None)
    if attachment is None:
        raise ValueError(f"{type(model).__name__} is not attached: call modes_fx.attach first")
    return attachment


def detach(model: nn.Module) -> nn.Module:
    """Undo :func:`attach`.

    Raises:
        ValueError: the model is not attached.
    """
    attachment = attached(model)
    for handle in attachment.handles:
        handle.remove()
    for layer in attachment.layers.values():
        for name in (_THETA, _COUNTS, _GATE):
            delattr(layer, name)
    delattr(getattr(model, "_orig_mod", model), _ATTACHMENT)
    return model


def _attach_layer(
    layer: nn.Module, gate: GateOptions, count_pairs: bool, handles: list[RemovableHandle]
) -> None:
    device = next(layer.parameters()).device
    counts = torch.zeros((len(Modality) if count_pairs else 0, 2), dtype=torch.int64, device=device)
    layer.register_buffer(_THETA, keep_all_theta().to(device), persistent=False)
    layer.register_buffer(_COUNTS, counts, persistent=False)
    setattr(layer, _GATE, gate)
    handles.append(layer.register_forward_pre_hook(_mark, with_kwargs=True))


def _mark(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    theta = getattr(layer, _THETA)
    if theta.dtype != torch.float32:
        raise RuntimeError(
            f"the thresholds became {theta.dtype} when the model was converted after it was "
            "attached: detach, convert the model, then attach again"
        )
    gate: GateOptions = getattr(layer, _GATE)
    name = None if args else next(k for k, v in kwargs.items() if isinstance(v, Tensor))
    x = args[0] if name is None else kwargs[name]
    marked = torch.ops.modes_fx.marker(
        x,
        theta,
        gate.modality.on(x.device),
        getattr(layer, _COUNTS),
        gate.share,
        gate.kept_mass_exponent,
        gate.min_k,
    )
    return ((marked, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: marked})


def _hook_modality(model: nn.Module, attachment: Attachment, token_ids: TokenIds) -> None:
    positions = {name: i for i, name in enumerate(inspect.signature(model.forward).parameters)}

    def begin_call(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def argument(name: str) -> Any:
            position = positions.get(name, len(args))
            return args[position] if position < len(args) else kwargs.get(name)

        attachment.call = _begin_call(attachment)
        modality = kwargs.get("modality")
        input_ids, embeddings = argument("input_ids"), argument("inputs_embeds")
        if input_ids is None and modality is None:
            warnings.warn(
                "the model was called without input_ids, so the modality of its tokens is unknown "
                "and nothing is skipped: pass modality=[B, S] codes (modes_fx.Modality) as well",
                stacklevel=2,
            )
        codes = modality_codes(
            token_ids,
            input_ids,
            mm_token_type_ids=argument("mm_token_type_ids"),
            modality=modality,
            attention_mask=argument("attention_mask"),
            shape=None if embeddings is None else tuple(embeddings.shape[:2]),
        )
        attachment.modality.write(codes)
        return args, {name: value for name, value in kwargs.items() if name != "modality"}

    def end_call(module: nn.Module, args: Any, output: Any) -> None:
        if attachment.caller == threading.get_ident():
            attachment.caller = None
            attachment.call.close()

    reason = "reads the modality of the tokens before the model's graphs run"
    before = torch.compiler.disable(begin_call, reason=reason)
    after = torch.compiler.disable(end_call, reason=reason)
    attachment.handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
    attachment.handles.append(model.register_forward_hook(after, always_call=True))


def _begin_call(attachment: Attachment) -> ExitStack:
    if not attachment.in_flight.acquire(blocking=False):
        raise RuntimeError(
            "this model is in a call already, and its tokens' modality belongs to that call: make "
            "one call at a time, or load a second copy of the model"
        )
    attachment.caller = threading.get_ident()
    call = ExitStack()
    call.callback(attachment.in_flight.release)
    call.callback(attachment.modality.reset)
    # A graph break between the layers, as vision towers cause, makes Dynamo capture every layer by
    # itself; the layers are one code object to it, so its limit must allow for all of them.
    captures = RECOMPILES_PER_LAYER * len(attachment.layers)
    limits = {
        name: max(captures, getattr(dynamo_config, name))
        for name in ("recompile_limit", "accumulated_recompile_limit")
    }
    call.enter_context(dynamo_config.patch(limits))
    return call
