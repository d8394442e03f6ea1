"""Experts inside TensorRT engines: our Triton kernels, compiled ahead of time, as plugins."""
