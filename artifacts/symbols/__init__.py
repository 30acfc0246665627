"""Debug files: what uploaded files are, and finding them by what crashes name."""
