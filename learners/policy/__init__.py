"""The policy-gradient learner and what only it needs."""
