"""What travels: codecs, messages, and the session's states."""
