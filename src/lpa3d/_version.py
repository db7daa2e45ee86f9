"""The version, of the package and of what a run says that made its outputs."""

__version__ = "0.1.0"
