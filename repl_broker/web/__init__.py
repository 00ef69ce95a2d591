"""The HTTP side of a node: the door that accepts, and the application behind it."""
