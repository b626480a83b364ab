"""Several settings trained from one snapshot, judged side by side on the development split."""
