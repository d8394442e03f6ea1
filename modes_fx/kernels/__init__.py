"""What a region computes, in plain PyTorch and in kernels: gate, experts, the body of an expert."""
