"""Archives, one module a source, all of the one protocol in ``source.py``."""
