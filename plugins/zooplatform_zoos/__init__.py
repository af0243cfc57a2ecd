"""Population sources: public zoo formats."""
