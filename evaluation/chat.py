"""A chat model for lmms-eval of any transformers model whose processor has a chat template.

lmms-eval's own, ``huggingface``, loads weights in bfloat16 and needs packages for images and videos
that need torchvision; scores on a CPU, in the dtype of a checkpoint, need neither.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

PASSED_ON = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")
"""What a task says of generation that ``generate`` takes; greedy unless it samples."""


class Chat(lmms):
    """Answers by ``generate``, a batch of prompts padded on the left at a time."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        """Load a model and its processor.

        Args:
            pretrained: a folder or hub id.
            batch_size: prompts that are answered at once.
            device: where to put the model; by default where it is loaded.
            device_map: as transformers takes it, in place of ``device``.
            dtype: of the weights; as stored by default.
            system_prompt: what every chat begins with, if anything.
            trust_remote_code: whether code from the repository may run.
            unknown: anything else is refused.

        Raises:
            ValueError: there is an option that this model does not have, or no chat template.
        """
        super().__init__()
        if unknown := {name: value for name, value in unknown.items() if value is not None}:
            raise ValueError(f"modes_fx_chat has no option {min(unknown)}")
        remote = {"trust_remote_code": trust_remote_code}
        placed = {"device_map": device_map} if device_map else {}
        self.model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
            pretrained, dtype=dtype, **placed, **remote
        ).eval()
        if device and not device_map:
            self.model.to(device)
        self.processor = AutoProcessor.from_pretrained(pretrained, **remote)
        if self.processor.chat_template is None:
            raise ValueError(f"the processor of {pretrained} has no chat template")
        self.processor.tokenizer.padding_side = "left"
        self.batch_size, self.system_prompt = int(batch_size), system_prompt

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return an answer to each request."""
        answers = [""] * len(requests)
        order = list(self._batches([request.args for request in requests]))
        for positions in track(order, "answering", disable=self.rank > 0, transient=True):
            some = [requests[position].args for position in positions]
            for position, answer in zip(positions, self._answer(some), strict=True):
                answers[position] = answer
        return answers

    def _batches(self, asked: Sequence[tuple[Any, ...]]) -> Iterator[list[int]]:
        """Group requests that generate alike, in the order of the documents."""
        groups: dict[str, list[int]] = {}
        for position, arguments in enumerate(asked):
            groups.setdefault(repr(arguments[2]), []).append(position)
        for positions in groups.values():
            for start in range(0, len(positions), self.batch_size):
                yield positions[start : start + self.batch_size]

    def _answer(self, some: Sequence[tuple[Any, ...]]) -> list[str]:
        chats = []
        for _, to_messages, _, document, task, split in some:
            messages = to_messages(self.task_dict[task][split][document])
            chat = ChatMessages(messages=messages).to_hf_messages()
            chats.append(self._apply_system_prompt(chat, self.system_prompt or ""))
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        asked = some[0][2]
        options = {name: asked[name] for name in PASSED_ON if asked.get(name) is not None}
        if not options.get("do_sample") and not options.get("temperature"):
            options = {k: v for k, v in options.items() if k not in ("temperature", "top_p")}
            options["do_sample"] = False
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, **options)
        said = self.processor.tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [_cut(text.strip(), asked.get("until") or ()) for text in said]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: lmms-eval asks it of tasks that compare answers, and this model gives its own.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("modes_fx_chat answers by generation; name another base")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: lmms-eval asks it of tasks with several rounds.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("modes_fx_chat answers in one round; name another base")


def _cut(answer: str, until: str | Sequence[str]) -> str:
    for end in [until] if isinstance(until, str) else until:
        answer = answer.split(end)[0] if end.strip() else answer
    return answer
