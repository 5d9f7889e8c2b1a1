"""Settings of learners and of whole runs. Values only; imports no torch."""
