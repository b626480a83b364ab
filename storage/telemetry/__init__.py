"""What is counted over the life of a deployment, for whoever watches it from outside."""
