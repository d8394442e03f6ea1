"""Skip the experts a multimodal token does not need, inside torch.compile."""
