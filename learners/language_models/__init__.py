"""Language models of one's own, written out in PyTorch: networks, pretraining, sampling, their folders. No Ray."""
