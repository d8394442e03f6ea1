"""Bake a policy into deployable artifacts."""
