"""Measure every mixture-of-experts type of the installed transformers: ``make coverage``."""
