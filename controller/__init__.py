"""The cluster's program: acts that need rights over the cluster. A stub until the controller's issue."""
