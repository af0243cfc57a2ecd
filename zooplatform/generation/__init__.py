"""Fitting generators on networks of a catalog, and taking what they make into it."""
