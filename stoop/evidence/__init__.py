"""Evidence: what a bundle is, how one is written and read, and the store that keeps them. No part of the reflex."""
