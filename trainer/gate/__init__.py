"""Whether a challenger becomes champion: decision, canary, promotion."""
