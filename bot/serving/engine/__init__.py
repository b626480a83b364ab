"""The batching engine: scheduling, the KV cache, LoRA adapters, sampling, events."""
