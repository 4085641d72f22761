"""Pages about single features: what they fire on, and how those of two runs compare."""
