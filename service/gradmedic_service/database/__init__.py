"""The connection, the tables, and the schema's migrations."""
