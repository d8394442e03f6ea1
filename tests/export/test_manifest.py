"""A manifest reads back as it was written, and notices what was changed."""

import pytest

from modes_fx.export import ExportError, Manifest
from modes_fx.export.manifest import Component, Value, digests, versions


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "text.pt2").write_bytes(b"program")
    ids = Value(name="input_ids", dtype="int64", shape=["b", "s"])
    logits = Value(name="logits", dtype="float32", shape=["b", "s", 64])
    component = Component(
        inputs=[ids], outputs=[logits], layers=2, rewritten=2, max_error=1e-6, checked_in="torch"
    )
    manifest = Manifest(
        format="pt2",
        model="demo",
        model_config_hash="0" * 64,
        dtype="float32",
        target=0.5,
        policy_sha256="0" * 64,
        details={},
        versions=versions(),
        tolerance=1e-4,
        components={"text": component},
        files=digests(tmp_path),
    )
    manifest.save(tmp_path)
    return tmp_path, manifest


def test_it_reads_back(artifact) -> None:
    folder, manifest = artifact
    assert Manifest.load(folder) == manifest
    assert manifest.components["text"].saves_compute is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "text.pt2").write_bytes(b"other"), "is not what was exported"),
        (lambda folder: (folder / "text.pt2").unlink(), "is missing: export the model again"),
        (lambda folder: (folder / "more").touch(), "is no part of the artifact"),
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not a manifest of this"),
    ],
)
def test_what_was_changed_is_named(artifact, damage, message) -> None:
    folder, _ = artifact
    damage(folder)
    with pytest.raises(ExportError, match=message):
        Manifest.load(folder)
