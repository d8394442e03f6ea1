"""The fast paths of training compute what the model computes without them."""

import torch

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.fast_paths import use_fast_paths
from modes_fx.bench.demo_model.model import build_model, build_processor


def test_the_fast_paths_change_no_logits() -> None:
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor.tokenizer).eval()
    inputs = BatchMaker(processor, load_digits("train"), seed=0).draw_chats(3, 2)
    inputs.pop("answer_mask")
    with torch.no_grad():
        expected = model(**inputs).logits
        use_fast_paths(model)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
