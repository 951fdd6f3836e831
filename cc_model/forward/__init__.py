"""What one forward does."""
