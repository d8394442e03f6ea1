"""Models are loaded from where they are named; inputs are made as far as the processor goes."""

import pytest

from modes_fx.bench.demo_model.model import build_model, build_processor
from modes_fx.cli.models import load_named_model, make_probes
from tests.tiny import tiny_vlm


def test_a_folder_without_a_model_is_named_in_the_error(tmp_path):
    with pytest.raises(ValueError, match=f"'{tmp_path}' cannot be loaded"):
        load_named_model(str(tmp_path))


def test_a_saved_model_keeps_its_dtype_and_its_processor(tmp_path):
    processor = build_processor()
    build_model(processor.tokenizer).bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, loaded = load_named_model(str(tmp_path))
    assert not model.training
    assert next(model.parameters()).dtype.itemsize == 2
    probes = make_probes(model, loaded)
    assert set(probes.inputs) == {"text", "image and text"}
    assert probes.inputs["image and text"]["pixel_values"].dtype == model.dtype
    assert probes.notes == []


def test_a_tokenizer_alone_gives_a_text_input():
    tokenizer = build_processor().tokenizer
    probes = make_probes(tiny_vlm(layers=1), tokenizer)
    assert set(probes.inputs) == {"text"}
    assert "image processor" in probes.notes[0]


def test_without_a_tokenizer_arbitrary_ids_are_used_and_said():
    probes = make_probes(tiny_vlm(layers=1), None)
    assert probes.inputs["text"]["input_ids"].shape == (1, 8)
    assert "arbitrary token ids" in probes.notes[0]


def test_a_processor_that_takes_no_image_is_said():
    processor = build_processor()

    def refuse(*args, **kwargs):
        raise TypeError("needs a video reader")

    processor.image_processor.preprocess = refuse
    probes = make_probes(tiny_vlm(layers=1), processor)
    assert set(probes.inputs) == {"text"}
    assert "needs a video reader" in probes.notes[0]
