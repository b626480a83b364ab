"""What a deployment shows to whoever watches it from outside: figures for Prometheus, alerts by webhook."""
