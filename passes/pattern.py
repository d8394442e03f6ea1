"""What a pattern is, and the cut that all patterns share.

A pattern knows one dispatch form: how a model brings each row to its expert. Adding one is a class
with a name and ``find`` (and a lifter or a ``combine`` of its own, where its rows need them), one
entry in ``modes_fx.passes.pipeline.PATTERNS``, and one test.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.lift import Lifter
from modes_fx.passes.region import (
    Candidate,
    NoMatchError,
    Region,
    check_enclosed,
    combine_of,
    pair_matrix,
    with_cast,
)

# T tokens, K experts per token, E experts, S = T * K pairs.


class Pattern(ABC):
    """One dispatch form."""

    name: ClassVar[str]
    proved: ClassVar[bool] = False
    """Whether its regions were proved right before they were captured."""
    lifter: ClassVar[type[Lifter]] = Lifter
    """What writes its rows down as a body."""

    @abstractmethod
    def find(self, graph: Graph) -> list[Candidate]:
        """Return the candidates in a functional ATen graph, in its order."""

    def combine(self, candidate: Candidate, tokens: int, top_k: int) -> Node:
        """Return the node that sums each token's experts.

        Raises:
            NoMatchError: there is none.
        """
        return combine_of(candidate, tokens, top_k)

    def check(self, candidate: Candidate) -> Region:
        """Cut a candidate at x, index and weight, and lift what its experts compute.

        Raises:
            NoMatchError: it is not a region that can be rewritten; says why.
        """
        index = pair_matrix(candidate.index_source)
        tokens, top_k = g.shape(index) or (0, 0)
        num_experts = (g.shape(candidate.gemms[0].weight) or (0,))[0]
        total = self.combine(candidate, tokens, top_k)
        lifter = self.lifter(candidate, tokens, top_k, num_experts)
        body = lifter.lift(total.all_input_nodes[0])
        if lifter.x is None or lifter.weight is None:
            missing = "input rows" if lifter.x is None else "combine weights"
            raise NoMatchError(f"the {missing} of the experts were not found", total)
        out = with_cast(total, g.dtype(lifter.x))
        if g.dtype(out) != g.dtype(lifter.x):
            raise NoMatchError(
                f"its output is {g.dtype(out)} but its input is {g.dtype(lifter.x)}", out
            )
        region = Region(
            form=candidate.form,
            gemms=candidate.gemms,
            x=lifter.x,
            index=index,
            weight=lifter.weight,
            out=out,
            params=tuple(lifter.params),
            body=body,
            num_experts=num_experts,
            skipped_id=num_experts,
        )
        check_enclosed(region.gemms, region.nodes, out)
        return region
