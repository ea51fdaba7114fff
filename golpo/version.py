"""The version of the project."""

__version__ = "2.0.0"
