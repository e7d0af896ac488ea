"""Tables and words from results."""
