"""The skills: one module each, with a request model, a result model and a decorated function."""
