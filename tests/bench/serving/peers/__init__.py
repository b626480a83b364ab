"""Other servers' sides of the comparison. These modules run in environments without Strop's packages."""
