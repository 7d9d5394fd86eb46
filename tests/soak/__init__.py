"""A long run of the whole tunnel under mixed load."""
