"""AI Forge: the skills to make, judge and run a local language model that knows one repository."""

__version__ = "0.1.0"
