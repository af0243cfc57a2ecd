"""Source hf-hub:."""
