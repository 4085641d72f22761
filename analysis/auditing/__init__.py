"""What makes a comparison unsound."""
