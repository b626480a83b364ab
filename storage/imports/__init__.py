"""Conversations from elsewhere: files of many formats, read as examples, checked, and stored as an import."""
