"""Every row with its own gathered expert matrix: ``bmm(weight[expert], row)``."""

from collections import defaultdict

from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, Gemm


class BatchedMM(Pattern):
    """``bmm`` over matrices gathered from a stacked parameter, one per row."""

    name = "batched_mm"

    def find(self, graph: Graph) -> list[Candidate]:
        """Group the ``bmm`` over gathered parameters by the choice they are gathered with."""
        by_choice: dict[Node, list[Gemm]] = defaultdict(list)
        for node in graph.nodes:
            if node.target is not g.aten.bmm.default:
                continue
            left, right = node.args
            for rows, gathered, matrix_on_left in ((right, left, True), (left, right, False)):
                found = _gathered(gathered)
                if found is not None:
                    operand, choice = found
                    operand = operand._replace(transposed=operand.transposed ^ matrix_on_left)
                    by_choice[choice].append(Gemm.of(node, rows, operand))
                    break
        return [
            Candidate(self.name, tuple(gemms), index_source=choice, root=choice)
            for choice, gemms in by_choice.items()
        ]


def _gathered(node: Node) -> tuple[g.Operand, Node] | None:
    swaps = 0
    while node.target in g.TRANSPOSE_OPS:
        swaps += 1
        node = node.all_input_nodes[0]
    if node.target is not g.aten.index.Tensor or len(node.args[1]) != 1:  # type: ignore[arg-type]
        return None
    operand = g.stacked_weight(node.args[0])  # type: ignore[arg-type]
    if operand is None:
        return None
    operand = operand._replace(transposed=operand.transposed ^ (swaps % 2 == 1))
    return operand, node.args[1][0]  # type: ignore[index,return-value]
