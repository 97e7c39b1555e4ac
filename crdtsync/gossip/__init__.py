"""How regions exchange commits and learn who is there."""
