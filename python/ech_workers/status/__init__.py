"""What a person sees of a running tunnel: single lines, or a live table."""
