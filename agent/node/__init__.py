"""What the agent knows of its node, and can do on it: processes, cgroups, containers."""

from __future__ import annotations
