"""Settings of small language models of one's own: their networks, pretraining, and the environment in which they act."""
