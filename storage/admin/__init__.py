"""What operators decide: settings, blocked members, and the audit log."""
