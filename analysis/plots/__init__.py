"""The studies' figures, drawn from run folders."""
