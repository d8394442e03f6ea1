"""Tensors come back as they were put, from memory or from files."""

from pathlib import Path

import pytest
import torch

from modes_fx.calibration.store import TensorStore

GROUPS = {
    name: {"x": torch.full((n, 8), float(n)), "y": torch.arange(n)}
    for n, name in enumerate(("one", "two", "three"), start=1)
}
SIZES = {name: sum(t.nbytes for t in group.values()) for name, group in GROUPS.items()}


def filled(store: TensorStore) -> TensorStore:
    for name, group in GROUPS.items():
        store.put(name, group)
    return store


@pytest.mark.parametrize("in_memory", [0, SIZES["one"], sum(SIZES.values())])
def test_what_was_put_comes_back_wherever_it_is(in_memory) -> None:
    store = filled(TensorStore(in_memory=in_memory))
    assert store.bytes_in_memory <= in_memory
    assert store.bytes_in_memory + store.bytes_on_disk == sum(SIZES.values())
    for name, group in GROUPS.items():
        assert name in store
        assert all(torch.equal(store[name][part], group[part]) for part in group)
    assert "four" not in store


def test_a_folder_is_taken_over_by_a_later_store(tmp_path) -> None:
    filled(TensorStore(tmp_path / "store"))
    later = TensorStore(tmp_path / "store")
    assert "two" in later
    assert torch.equal(later["two"]["x"], GROUPS["two"]["x"])


def test_files_of_its_own_go_with_the_store(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = filled(TensorStore(in_memory=0))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    del store
    assert not list(Path(tmp_path).iterdir())
