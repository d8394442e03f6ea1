"""Packing weights into panels, and back."""

import pytest
import torch

from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.panels import can_pack, matrix_of, pack, prepack, unpack
from tests.bodies import interleaved_with_biases, random_params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [True, False])
def test_unpacking_undoes_packing(dtype, transposed) -> None:
    weight = torch.randn(3, 64, 96).to(dtype)
    packed = pack(weight, transposed=transposed)
    matrices = weight if transposed else weight.transpose(1, 2)
    assert torch.equal(unpack(packed), matrices)
    assert torch.equal(matrix_of(packed, 1), matrices[1])
    assert packed.numel() == weight.numel()


def test_a_panel_holds_32_columns_side_by_side() -> None:
    column, k = torch.arange(64.0)[:, None], torch.arange(4.0)
    packed = pack((column * 100 + k)[None], transposed=True)
    assert packed[0, 1, 3, :, 0].tolist() == [n * 100 + 3 for n in range(32, 64)]
    in_pairs = pack((column + k).bfloat16()[None], transposed=True)
    assert in_pairs[0, 0, 1, 5].tolist() == [5 + 2, 5 + 3]


@pytest.mark.parametrize("shape", [(2, 48, 8), (2, 64), (2, 32, 7)])
def test_weights_that_do_not_divide_are_refused(shape) -> None:
    weight = torch.zeros(shape, dtype=torch.bfloat16)
    assert not can_pack(weight, transposed=True)
    with pytest.raises(ValueError, match="do not divide into panels"):
        pack(weight, transposed=True)


def test_prepacking_leaves_vectors_and_turns_products() -> None:
    body, sizes = interleaved_with_biases(64, 32)
    params = random_params(sizes, 2, torch.float32, torch.Generator().manual_seed(0))
    packed, text = prepack(body.to_json(), params)
    assert [param.dim() for param in packed] == [5, 2, 5, 2]
    assert packed[1] is params[1]
    products = [step for step in Body.from_json(text).steps if step.op == "matmul"]
    assert all(step.args[2] is True for step in products)
