"""What a session is attached to and what it did, as text and as JSON."""
