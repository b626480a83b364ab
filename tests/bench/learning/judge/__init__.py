"""What the judge can tell of tastes that it doesn't count, beside a judge that sees answers only."""
