"""A compiled package computes what its model does."""

import pytest

from modes_fx.export import export, verify
from modes_fx.export.aoti import INSTRUCTION_SET, LOAD_ORDER
from tests.export.conftest import HALF, MORE_TEXT, TEXT


@pytest.mark.slow
def test_a_package_carries_its_kernels(gated, tmp_path) -> None:
    folder = tmp_path / "artifact"
    manifest = export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, format="aoti")
    assert manifest.details[INSTRUCTION_SET]
    order = (folder / "lib" / LOAD_ORDER).read_text().split()
    assert [name.partition("_")[0] for name in order] == ["library", "experts", "body"]
    (check,) = verify(folder, gated.model, {"text": [MORE_TEXT]})
    assert check.agrees
