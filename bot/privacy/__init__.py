"""What members decide about their own data, and what a deletion on Discord deletes here."""
