"""Score a skipping model with lmms-eval, next to itself with every expert kept.

``plugin.py`` is what lmms-eval finds: it wraps any of its chat models. ``run.py`` evaluates, and
``comparison.py`` says what skipping costs. Needs the extra ``eval``.
"""
