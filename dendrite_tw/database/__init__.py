"""SQL, written once and run on SQLite or PostgreSQL."""
