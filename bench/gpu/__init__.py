"""GPU kernels: what the compiler says of them, what they must move, and how fast they are.

All but the last needs no GPU: ``make kernels-report``. With one: ``make gpu-check``.
"""
