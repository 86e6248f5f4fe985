"""The helper's part of names beyond the node: it asks the API or the kubelet, and tells the reflex."""
