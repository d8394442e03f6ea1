"""What a region computes, in plain PyTorch and in kernels: gate, experts, and the body between them."""
