"""The commands of the command line, other than ``serve`` and ``demo``."""
