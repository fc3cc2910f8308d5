"""What is never lost: the evaluation store, the key that finds a search in it, and the routes of its dialog."""
