"""Plain CNN and MLP zoo networks."""
