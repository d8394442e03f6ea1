"""How much time an exported model saves by skipping, where it can be run."""
