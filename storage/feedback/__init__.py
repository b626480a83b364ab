"""What people said about replies: ratings, comparisons, duels, reports, tastings."""
