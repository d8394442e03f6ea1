"""The ops of mean compensation as torch sees them."""

import torch

from modes_fx import mean_ops
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.vocabulary import Modality

E, H = 4, 5
INDEX = torch.tensor([[0, 1], [2, 3], [1, 0]])
KEPT = torch.tensor([[0, E], [E, E], [1, 0]])
WEIGHT = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]])
CODES = torch.tensor([Modality.TEXT, Modality.VISION, Modality.TEXT], dtype=torch.int8)


def test_they_hold_what_torch_asks_of_an_op() -> None:
    out, table = torch.randn(3, H), torch.randn(2, E, H)
    torch.library.opcheck(mean_ops.add_skipped_means, (out, INDEX, WEIGHT, KEPT, CODES, table))
    body = Body((True,), (Step(MATMUL, ("x", "p0", True)),)).to_json()
    sums, params = torch.zeros(2, E, H + 1), [torch.randn(E, H, H)]
    arguments = (sums, torch.randn(3, H), INDEX, WEIGHT, KEPT, CODES, params, body, E)
    torch.library.opcheck(mean_ops.collect_skipped, arguments)
