"""Stoop: a node-local response engine for Falco.

The library that the programs (`agent`, `controller`) and the `stoop` command stand on. It never imports them.
"""

__version__ = "0.1.0"
