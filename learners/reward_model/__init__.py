"""The reward-model learner: Bradley-Terry on human ratings."""
