"""The node's processes: starting them, keeping them running, and talking to them."""
