"""What is recorded of uploads, in SQLite or PostgreSQL, and locks among those who share it."""
