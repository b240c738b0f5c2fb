"""Training, watching, evaluating and features."""
