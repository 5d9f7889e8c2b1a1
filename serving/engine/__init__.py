"""The vLLM engine of one replica: how it is started on a CPU, and why it ended."""
