"""Acts on files of a container."""
