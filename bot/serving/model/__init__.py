"""The base model and adapters as files: sources, quantization, loading, chat template."""
