"""Sweeps: many runs of one configuration that differ in a few settings, by Ray Tune."""
