"""How databases of older programs become those of this one, step by step, by Alembic."""
