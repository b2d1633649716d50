"""The bench: requests in, results out."""
