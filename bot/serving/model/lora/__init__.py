"""LoRA adapters by their files: which are served, and how one from elsewhere is brought in (torch-free)."""
