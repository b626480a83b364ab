"""The first start: what `strop init`, `strop doctor` and the like ask and check."""
