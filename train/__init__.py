"""Training, evaluation and data scripts around ``cc_model``."""
