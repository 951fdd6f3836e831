"""What is learned and saved: the Decision Maker, the Transform Matrix, the options."""
