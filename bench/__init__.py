"""The benchmark: devserver beside its peers, in the same minutes. ``python -m bench`` runs it."""
