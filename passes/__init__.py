"""Graph passes: find mixture-of-experts regions, check them, rewrite them."""
