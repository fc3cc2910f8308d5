"""Search Picture: whatever makes a picture, searched by its noises."""
