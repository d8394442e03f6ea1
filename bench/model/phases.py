"""Prefill and decode of one model with a static cache, as generation calls them."""

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

DECODE_STEPS = 8
Phase = Literal["prefill", "decode"]
PREFILL: Phase = "prefill"
DECODE: Phase = "decode"
PHASES: tuple[Phase, ...] = (PREFILL, DECODE)


class Session:
    """A model with a cache and a prompt; every call begins where the prompt or its end is.

    Attributes:
        model: what is called; compiled or not.
        steps: the token ``[1, 1]`` of each decode step.
    """

    def __init__(self, model: PreTrainedModel, prompt: dict[str, Tensor]) -> None:
        """Fill the cache by an uncompiled prefill, as a static cache asks for.

        Args:
            model: not compiled and not attached yet.
            prompt: the arguments of the prefill.
        """
        self.model, self._prompt = model, prompt
        self._length = prompt["input_ids"].shape[1]
        self._cache = StaticCache(model.config, max_cache_len=self._length + DECODE_STEPS)
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(4, 64, (DECODE_STEPS,), generator=generator)
        self.steps = [word.view(1, 1) for word in words]
        self.prefill()

    def prefill(self, *, every_token: bool = False) -> Tensor:
        """Run the prompt.

        Args:
            every_token: whether to compute the logits of all T tokens; generation needs the last.

        Returns:
            ``[T, V]`` or ``[1, V]`` logits.
        """
        self._rewind(0)
        logits: Tensor = self.model(
            **self._prompt,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if every_token else 1,
        ).logits
        return logits[0]

    def decode(self) -> Tensor:
        """Run the steps after the prompt, one token each; return their logits ``[steps, V]``."""
        self._rewind(self._length)
        steps = [
            self.model(input_ids=step, past_key_values=self._cache, use_cache=True).logits[:, -1]
            for step in self.steps
        ]
        return torch.cat(steps)

    def run(self, phase: Phase) -> Tensor:
        """Run a phase by name."""
        return {PREFILL: self.prefill, DECODE: self.decode}[phase]()

    def every_token(self, phase: Phase) -> Tensor:
        """Run a phase by name and return the logits of all its tokens."""
        return self.prefill(every_token=True) if phase == PREFILL else self.decode()

    def _rewind(self, position: int) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(position)
