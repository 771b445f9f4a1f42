"""Golden scripts: one for each hole that the rules close."""
