"""Completions become scores: scorers, and the stage that asks a pool of them."""
