"""The version, written here only: the build back end and the bundle writer read it."""

__version__ = "0.1.0"
