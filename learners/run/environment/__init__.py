"""Runs that learn in a Gymnasium environment."""
