"""What a session holds, and its written forms: bytes, document, record."""
