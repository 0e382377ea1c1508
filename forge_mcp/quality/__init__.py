"""Whether a dataset is good enough to train on."""
