"""Find the constants of a policy (alpha, tau) from data."""
