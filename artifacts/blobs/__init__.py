"""Uploads: chunks come in, are kept as blobs, make files, and are read back."""
