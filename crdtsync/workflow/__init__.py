"""Tasks that depend on one another, and what an attempt leaves behind."""
