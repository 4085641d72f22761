"""Run folders, notes, result files and imports, read as records."""
