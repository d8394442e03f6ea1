"""What other libraries may say while a command shows its own progress."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """Silence progress bars and notes of transformers and its hub, and Dynamo's.

    Those are on graph breaks, and on cached functions of transformers that it reads through.
    Errors are still shown, and ``explain`` reports the graph breaks.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
