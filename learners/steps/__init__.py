"""The control loop of a policy-gradient run, and how a step's prompts become scored groups."""
