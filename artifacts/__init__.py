"""Everything that knows what an artifact is; imports neither ``downloader`` nor ``devserver``."""
