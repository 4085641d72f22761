"""What a run leaves behind: its folder, its lease, and a copy for W&B when asked for."""
