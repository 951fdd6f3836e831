"""What a forward may leave out, and the reasons not to."""
