"""The version of the distribution, SDK and node alike."""

__version__ = "0.1.0"
