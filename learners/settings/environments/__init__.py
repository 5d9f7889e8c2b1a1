"""Settings of runs in environments: the environment and its evaluation, tables, RLlib."""
