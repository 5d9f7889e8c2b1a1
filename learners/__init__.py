"""Turns judged text into new weights: algorithms, learners, evaluation, the driver loop."""
