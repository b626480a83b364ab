"""A training as a value: a folder with a request goes in, an adapter and its outcome come out."""
