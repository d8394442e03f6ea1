"""The modality of every token, from the arguments of a model's forward.

Codes are written into a buffer of fixed capacity, because a captured graph needs a tensor of stable
shape: it is an input of every graph that holds experts, whether or not that graph sees token ids.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modes_fx.vocabulary import Modality

DEFAULT_MAX_TOKENS = 1 << 17

_VISION_ID = re.compile(r"^(image|video)_(pad_|patch_)?token_(id|index)$")
_AUDIO_ID = re.compile(r"^audio_(pad_|patch_)?token_(id|index)$")

# mm_token_type_ids, as processors return them: 0 text, 1 image, 2 video, 3 audio.
_CODE_OF_TYPE = (Modality.TEXT, Modality.VISION, Modality.VISION, Modality.AUDIO)


@dataclass(frozen=True)
class TokenIds:
    """Token ids that stand for something else than text.

    Attributes:
        vision: placeholders of image and video features.
        audio: placeholders of audio features.
        special: tokenizer special tokens that a policy keeps (code OTHER).
    """

    vision: tuple[int, ...] = ()
    audio: tuple[int, ...] = ()
    special: tuple[int, ...] = ()

    @staticmethod
    def from_config(config: Any, special: Iterable[int] = ()) -> "TokenIds":
        """Collect the placeholder ids of a transformers config and of its nested configs."""
        found: dict[re.Pattern[str], set[int]] = {_VISION_ID: set(), _AUDIO_ID: set()}
        pending = [] if config is None else [config]
        while pending:
            for name, value in vars(pending.pop()).items():
                if hasattr(value, "model_type"):
                    pending.append(value)
                elif isinstance(value, int) and not isinstance(value, bool):
                    for pattern, ids in found.items():
                        if pattern.match(name):
                            ids.add(value)
        vision, audio = tuple(sorted(found[_VISION_ID])), tuple(sorted(found[_AUDIO_ID]))
        kept = tuple(sorted(set(special) - set(vision) - set(audio)))
        return TokenIds(vision, audio, kept)


def modality_codes(
    token_ids: TokenIds,
    input_ids: Tensor | None,
    *,
    mm_token_type_ids: Tensor | None = None,
    modality: Tensor | None = None,
    attention_mask: Any = None,
    shape: tuple[int, int] | None = None,
) -> Tensor:
    """Return the modality code of every token of a call.

    Args:
        token_ids: the model's placeholder ids.
        input_ids: ``[B, S]``, or None where the model is given embeddings.
        mm_token_type_ids: ``[B, S]`` from the processor; used when it covers just these tokens.
        modality: ``[B, S]`` explicit codes; overrides all but padding.
        attention_mask: says which tokens are PADDING: those that the last S columns of a
            ``[B, .]`` mask leave out; where the mask is prepared (``[B, ., S, .]``, or one for each
            kind of layer), those that attend to nothing, not even to themselves. That finds padding
            on the left; on the right it counts as what its ids say.
        shape: ``(B, S)`` of the embeddings where ``input_ids`` is None.

    Returns:
        ``[B * S]`` int8 codes. OTHER (never skipped) where nothing tells a token's modality.

    Raises:
        ValueError: ``modality`` is not of shape ``[B, S]``, or holds something else than codes.
    """
    batch, length = input_ids.shape if input_ids is not None else (shape or (0, 0))
    if modality is not None:
        if tuple(modality.shape) != (batch, length):
            raise ValueError(
                f"modality has shape {tuple(modality.shape)}, the tokens of this call "
                f"{(batch, length)}: pass one code per token"
            )
        _check_codes(modality)
        codes = modality.to(torch.int8)
    elif input_ids is not None:
        codes = _codes_of_ids(token_ids, input_ids, mm_token_type_ids)
    else:
        codes = torch.full((batch, length), Modality.OTHER.value, dtype=torch.int8)
    padding = _padding(attention_mask, batch, length)
    if padding is not None:
        codes = codes.masked_fill(padding.to(codes.device), Modality.PADDING.value)
    return codes.reshape(-1)


def _padding(mask: Any, batch: int, length: int) -> Tensor | None:
    """Return which tokens are padding, broadcastable to ``[B, S]``; None where nothing tells."""
    if length == 0:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, mask.shape[1] - length :] == 0
    found = None
    for prepared in mask.values() if isinstance(mask, Mapping) else (mask,):
        if not isinstance(prepared, Tensor) or prepared.dim() != 4 or prepared.shape[2] != length:
            continue
        attends = _attends(prepared)
        if attends is not None and prepared.shape[0] in (1, batch):
            idle = ~attends.any(dim=-1).any(dim=1)
            found = idle if found is None else found & idle
    return found


def _attends(prepared: Tensor) -> Tensor | None:
    """Return where queries attend to keys: True, or not the lowest value where it is added."""
    if prepared.dtype is torch.bool:
        return prepared
    if prepared.is_floating_point():
        return prepared > torch.finfo(prepared.dtype).min / 2
    return None


def _check_codes(modality: Tensor) -> None:
    known = sorted(Modality)
    if modality.device.type == "meta" and not modality.is_floating_point():
        return
    if modality.is_floating_point() or not torch.isin(modality.cpu(), torch.tensor(known)).all():
        raise ValueError(
            f"modality holds {sorted(set(modality.flatten().tolist()))}, but its codes are the "
            f"integers {known[0]} to {known[-1]} (modes_fx.Modality)"
        )


def _codes_of_ids(ids: TokenIds, input_ids: Tensor, types: Tensor | None) -> Tensor:
    codes = torch.full_like(input_ids, Modality.TEXT.value, dtype=torch.int8)
    if ids.special:
        codes = codes.masked_fill(_is_any(input_ids, ids.special), Modality.OTHER.value)
    if types is not None and types.shape == input_ids.shape:
        for kind, code in enumerate(_CODE_OF_TYPE):
            if code is not Modality.TEXT:
                codes = codes.masked_fill(types == kind, code.value)
    if ids.vision:
        codes = codes.masked_fill(_is_any(input_ids, ids.vision), Modality.VISION.value)
    if ids.audio:
        codes = codes.masked_fill(_is_any(input_ids, ids.audio), Modality.AUDIO.value)
    return codes


def _is_any(input_ids: Tensor, wanted: tuple[int, ...]) -> Tensor:
    found = input_ids == wanted[0]
    for token in wanted[1:]:
        found = found | (input_ids == token)
    return found


class DeviceCodes(NamedTuple):
    """The codes of the call in flight on one device.

    Attributes:
        codes: int8 ``[max_tokens]``; OTHER beyond the call's tokens.
        tokens: int64 ``[1]``, how many tokens the call has; 0 where all codes are the same, as
            outside a call.
    """

    codes: Tensor
    tokens: Tensor


class ModalityBuffer:
    """The codes of the call in flight, on every device that holds experts.

    Outside a call every code is the same, OTHER by default, so that a stale mask is never used.

    Attributes:
        by_device: the buffers of each device.
        max_tokens: the most tokens (batch * sequence) one call may have.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        max_tokens: int,
        outside: Modality = Modality.OTHER,
    ) -> None:
        """Allocate one buffer a device, with the code ``outside`` of a call everywhere."""
        self.max_tokens = max_tokens
        self._outside = outside
        # Buffers made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            self.by_device: Mapping[str, DeviceCodes] = {
                str(device): _no_call(max_tokens, outside, device) for device in devices
            }

    def write(self, codes: Tensor) -> None:
        """Store the codes of a call.

        Raises:
            ValueError: more tokens than the buffer holds.
        """
        if codes.shape[0] > self.max_tokens:
            raise ValueError(
                f"a call with {codes.shape[0]} tokens exceeds the {self.max_tokens} the model was "
                "attached for: use modes_fx.attach(model, policy, max_tokens=...)"
            )
        for buffer in self.by_device.values():
            buffer.codes[: codes.shape[0]].copy_(codes)
            buffer.tokens.fill_(codes.shape[0])

    def reset(self) -> None:
        """Forget the call."""
        for buffer in self.by_device.values():
            buffer.codes.fill_(self._outside.value)
            buffer.tokens.zero_()

    def on(self, device: torch.device) -> DeviceCodes:
        """Return the buffers of one device.

        Raises:
            RuntimeError: the model was moved after it was attached.
        """
        if str(device) not in self.by_device:
            raise RuntimeError(
                f"experts run on {device}, but the model was attached on "
                f"{', '.join(self.by_device)}: detach, move the model, then attach again"
            )
        return self.by_device[str(device)]


def _no_call(max_tokens: int, code: Modality, device: torch.device) -> DeviceCodes:
    codes = torch.full((max_tokens,), code.value, dtype=torch.int8, device=device)
    return DeviceCodes(codes, torch.zeros(1, dtype=torch.int64, device=device))
