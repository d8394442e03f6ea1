"""The modality codes are fixed: they are stored in tensors and artifacts."""

from modes_fx.vocabulary import CALIBRATED, Modality


def test_codes():
    codes = {modality.label: int(modality) for modality in Modality}
    assert codes == {"text": 0, "vision": 1, "audio": 2, "other": 3, "padding": 4}


def test_calibrated_names_are_the_labels():
    assert all(modality.label == name for name, modality in CALIBRATED.items())
