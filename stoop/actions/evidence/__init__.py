"""Acts that leave evidence and change nothing."""
