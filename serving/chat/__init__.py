"""`rayward chat`: the reader's side of an endpoint. Imports neither Ray nor vLLM."""
