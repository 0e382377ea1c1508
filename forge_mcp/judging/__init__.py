"""Is the tuned model better than its base, and by how much."""
