"""What people can do with a reply besides reading it: rate, correct, report, compare."""
