"""The typed values that pass between the rooms of the house, and the one prompt renderer."""
