"""What operators and moderators do and are told: settings, checks, records and alerts."""
