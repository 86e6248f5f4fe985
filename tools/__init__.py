"""What contributors and `make` run; not part of the distribution."""
