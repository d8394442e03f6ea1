"""What lmms-eval finds through its entry points."""

from lmms_eval.models.registry_v2 import ModelManifest

SKIPPING, CHAT = "modes_fx", "modes_fx_chat"
"""Names for lmms-eval: of the wrapper, and of a chat model that it can wrap."""


def manifests() -> list[ModelManifest]:
    """Return what this package adds to lmms-eval's models."""
    return [
        ModelManifest(SKIPPING, chat_class_path="modes_fx.evaluation.skipping.Skipping"),
        ModelManifest(CHAT, chat_class_path="modes_fx.evaluation.chat.Chat"),
    ]
