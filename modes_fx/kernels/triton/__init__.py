"""Kernels for NVIDIA and AMD GPUs, whose expert bodies are generated from the body's JSON.

- ``plan`` takes a body apart into prologue, up-products, middle, down-product and tail;
- ``operations`` and ``printer`` write these as Triton functions into a cached file;
- ``routing``, ``prefill`` and ``decode`` hold the kernels;
- ``config`` chooses block sizes, ``limits`` makes them fit the device, ``launch`` runs them;
- ``register`` makes all of it the CUDA implementation of the ops.
"""
