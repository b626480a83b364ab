"""Erasure, redaction and backups."""
