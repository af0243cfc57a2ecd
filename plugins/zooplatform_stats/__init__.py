"""Properties and SQL functions."""
