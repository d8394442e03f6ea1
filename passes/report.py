"""What the passes did to a graph, layer by layer, as data."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["rewritten", "unverified", "refused"]


@dataclass(frozen=True)
class LayerReport:
    """What became of one MoE layer in one captured graph.

    Attributes:
        path: the module that owns the experts.
        status: rewritten; unverified (it matches, but there were no real weights to prove it on, so
            it was left as it is); refused (left as it is).
        form: the dispatch form that was found, empty where none was.
        reason: why it was not rewritten; empty where it was.
        num_experts: E, and likewise below; 0 where unknown.
        top_k: K.
        hidden_size: H.
        intermediate_size: I.
        body: what an expert computes, in one line.
        gated: whether a policy's thresholds reach the layer.
        max_error: the largest relative error found when it was verified; None where it was not.
    """

    path: str
    status: Status
    form: str = ""
    reason: str = ""
    num_experts: int = 0
    top_k: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    body: str = ""
    gated: bool = False
    max_error: float | None = None
