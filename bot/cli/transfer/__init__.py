"""What comes in and goes out as whole adapters."""
