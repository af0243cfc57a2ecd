"""Sources on disk."""
