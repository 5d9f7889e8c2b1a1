"""Gymnasium environments: made from a configuration, as arrays, and what a policy does in them."""
