"""What the passes did to a graph, layer by layer, as data."""

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["rewritten", "unverified", "refused"]
Stage = Literal["find", "cut", "gate", "proof"]
STAGES: tuple[Stage, ...] = get_args(Stage)

COMPUTED = "computed at every call"
"""Of weights: they are stored in a form that no kernel reads, so the graph computes all of them."""


@dataclass(frozen=True)
class NearestMiss:
    """How far the pattern came that came furthest with a layer.

    Attributes:
        pattern: its name; empty where no pattern found anything to start from.
        stage: what failed: find (no pattern knows the form), cut (the region's bounds, or what its
            experts compute), gate (the policy cannot act there), proof (the numbers differ).
        node: the node of the captured graph at fault; empty where there is no single one.
    """

    pattern: str
    stage: Stage
    node: str = ""

    def __str__(self) -> str:
        """Say it in a few words."""
        tried = f"{self.pattern} came furthest" if self.pattern else "no pattern applies"
        return f"{tried}, failed at: {self.stage}{f' (node {self.node})' if self.node else ''}"


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
        router: the operations from the combine weights back to the router's projection.
        router_weight: the qualified name of that projection's matrix; empty where unknown.
        nearest_miss: where matching ended; None where the layer matches.
        weights: the dtypes of the experts' weights as kernels read them, or :data:`COMPUTED`.
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
    router: str = ""
    router_weight: str = ""
    nearest_miss: NearestMiss | None = None
    weights: str = ""
