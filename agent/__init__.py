"""The node's program: reads Falco's alerts, decides by rules, acts on this node within a millisecond."""
