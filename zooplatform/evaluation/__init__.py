"""How well predictions fit: figures, their uncertainty, and the protocols that compare methods."""
