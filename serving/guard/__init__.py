"""What stands between a client and the policy: keys, limits, error shapes, request ids. Nothing here imports vLLM."""
