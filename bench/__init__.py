"""Benchmarks and the demo model."""
