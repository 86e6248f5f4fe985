"""What workers do: everything that looks into a target. Nothing here is imported by the reflex."""
