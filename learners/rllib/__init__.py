"""Ray's RLlib as a learner: its algorithms in our run directory, checkpoints and reports. Imported late: it takes seconds."""
