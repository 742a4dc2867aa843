"""The version, in a file of its own: what needs only this imports nothing else of the package."""

__version__ = "0.1.0"
