"""What attach puts on a model: buffers and a marker on its layers, modality hooks on itself."""

import inspect
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch.utils.hooks import RemovableHandle

from modes_fx import mean_ops as mean_ops  # registers the ops of a rewritten graph
from modes_fx import ops as ops  # registers the ops that the hooks call
from modes_fx.errors import MatchError
from modes_fx.forward import ReplacedForward
from modes_fx.modality import ModalityBuffer, TokenIds, modality_codes
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import Modality

LAYER_PATH = "modes_layer_path"
"""The attribute of a threshold buffer that holds the path of the module it belongs to."""

ATTACHMENT = "_modes_attachment"
THETA = "modes_theta"
COUNTS = "modes_counts"
MEANS = "modes_means"
MEAN_SUMS = "modes_mean_sums"
GATE = "_modes_gate"

RECOMPILES_PER_LAYER = 16
"""How often each layer may be captured: prefill and decode, some shapes and numbers of images."""


@dataclass(frozen=True)
class GateOptions:
    """What a layer's marker carries besides thresholds: the policy's options and the codes.

    ``strict``: a call that no backend captures is an error.
    """

    share: str
    kept_mass_exponent: float
    min_k: int
    modality: ModalityBuffer
    strict: bool = False


class Replacement(Protocol):
    """What stands in the place of a module's own ``forward``."""

    max_error: float

    def check(self) -> None:
        """Raise where the model was changed so that it no longer holds."""

    def remove(self) -> None:
        """Give the module its own ``forward`` back."""


@dataclass
class Attachment:
    """What ``attach`` put on a model.

    Attributes:
        policy: the policy in force; None keeps every expert.
        target: the calibrated target in force; None keeps every expert.
        layers: the modules that own experts, by path.
        modality: the modality of the tokens of the call in flight.
        decoder_modality: where an encoder reads those, the modality of the decoder's own tokens.
        handles: the hooks to remove.
        blocks: the blocks that are captured by themselves.
        loops: the expert loops that run as one op, by path.
        left: why other modules that loop over experts were left as they are, by path.
        in_flight: held during a call, because two calls would share the modality buffer.
        warned: whether it was said that tokens without ids are not skipped.
        caller: the thread that made the call in flight.
        call: what ends with the call in flight.
    """

    policy: SkipPolicy | None
    target: float | None
    layers: Mapping[str, nn.Module]
    modality: ModalityBuffer
    decoder_modality: ModalityBuffer | None = None
    handles: list[RemovableHandle] = field(default_factory=list)
    blocks: list[ReplacedForward] = field(default_factory=list)
    loops: dict[str, Replacement] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    in_flight: threading.Lock = field(default_factory=threading.Lock)
    warned: bool = False
    caller: int | None = None
    call: ExitStack = field(default_factory=ExitStack)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse: a copy's hooks would write this model's buffers."""
        raise TypeError("an attached model cannot be copied: detach it, copy it, attach both")


def keep_all_theta() -> Tensor:
    """Return thresholds ``[M]`` that skip nothing but padding."""
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.PADDING] = torch.inf
    return theta


def attach_layer(path: str, layer: nn.Module, gate: GateOptions, count_pairs: bool) -> None:
    """Put thresholds and counters on a module that owns experts."""
    device = next(layer.parameters()).device
    counted = len(Modality) if count_pairs else 0
    with torch.inference_mode(False):
        counts = torch.zeros((counted, 2), dtype=torch.int64, device=device)
        theta = keep_all_theta().to(device)
    # Where Dynamo captures a layer by itself, the thresholds are all that tells which layer it is.
    setattr(theta, LAYER_PATH, path)
    layer.register_buffer(THETA, theta, persistent=False)
    layer.register_buffer(COUNTS, counts, persistent=False)
    layer.register_buffer(MEANS, None, persistent=False)
    layer.register_buffer(MEAN_SUMS, None, persistent=False)
    setattr(layer, GATE, gate)


def mark_input(layer: nn.Module) -> RemovableHandle:
    """Put the marker in front of a module that owns experts."""
    return layer.register_forward_pre_hook(_mark_first, with_kwargs=True)


def mark(layer: nn.Module, value: Tensor) -> Tensor:
    """Return a value of an attached layer's tokens behind a marker that carries its gate.

    Raises:
        RuntimeError: the model was converted after it was attached.
        MatchError: under ``strict``, where the layer is called uncompiled.
    """
    theta = getattr(layer, THETA)
    if theta.dtype != torch.float32:
        raise RuntimeError(
            f"the thresholds became {theta.dtype} when the model was converted after it was "
            "attached: detach, convert the model, then attach again"
        )
    gate: GateOptions = getattr(layer, GATE)
    if gate.strict and not torch.compiler.is_compiling():
        raise MatchError(
            f"strict: {getattr(theta, LAYER_PATH)} runs outside modes_backend and would compute "
            "every expert: Dynamo cannot capture the code around it, or the model was not "
            "compiled. Run modes_fx.explain(model, **inputs) to see which layers are captured"
        )
    marked: Tensor = torch.ops.modes_fx.marker(
        value,
        theta,
        *gate.modality.on(value.device),
        getattr(layer, COUNTS),
        gate.share,
        gate.kept_mass_exponent,
        gate.min_k,
        getattr(layer, MEANS),
        getattr(layer, MEAN_SUMS),
    )
    return marked


def _mark_first(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (mark(layer, args[0]), *args[1:]), kwargs
    name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
    return args, {**kwargs, name: mark(layer, kwargs[name])}


def hook_modality(model: nn.Module, attachment: Attachment, token_ids: TokenIds) -> None:
    """Put hooks on the model that keep the modality buffer true during a call, and only then."""
    positions = {name: i for i, name in enumerate(inspect.signature(model.forward).parameters)}

    def begin_call(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def argument(name: str) -> Any:
            position = positions.get(name, len(args))
            return args[position] if position < len(args) else kwargs.get(name)

        attachment.call = _begin_call(attachment)
        for replacement in attachment.loops.values():
            replacement.check()
        modality = kwargs.get("modality")
        input_ids, embeddings = argument("input_ids"), argument("inputs_embeds")
        decoder_ids = argument("decoder_input_ids")
        encoded_before = decoder_ids is not None and embeddings is None
        unknown = input_ids is None and modality is None and not encoded_before
        if unknown and not attachment.warned:
            attachment.warned = True
            warnings.warn(
                "the model was called without input_ids, so the modality of its tokens is unknown "
                "and nothing is skipped in this and further such calls: pass modality=[B, S] codes "
                "(modes_fx.Modality) as well",
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
        if attachment.decoder_modality is not None:
            mask = argument("decoder_attention_mask")
            decoder_codes = modality_codes(token_ids, decoder_ids, attention_mask=mask)
            attachment.decoder_modality.write(decoder_codes)
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
    if attachment.decoder_modality is not None:
        call.callback(attachment.decoder_modality.reset)
    # A graph break between the layers, as vision towers cause, makes Dynamo capture every layer by
    # itself; the layers are one code object to it, so its limit must allow for all of them.
    captures = RECOMPILES_PER_LAYER * len(attachment.layers)
    limits = {
        name: max(captures, getattr(dynamo_config, name))
        for name in ("recompile_limit", "accumulated_recompile_limit")
    }
    call.enter_context(dynamo_config.patch(limits))
    return call
