"""vLLM as an engine: its flags, its process, and the resolver that hands it our adapters."""
