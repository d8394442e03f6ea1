"""Settings of every test: reproducible examples, no time limits that a busy machine breaks.

Where there is no GPU, Triton interprets its kernels. It decides that when it is first imported,
which torch does too, so it has to be said here, before any test is.
"""

import os

import hypothesis
import torch

hypothesis.settings.register_profile("modes_fx", deadline=None, derandomize=True)
hypothesis.settings.load_profile("modes_fx")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
