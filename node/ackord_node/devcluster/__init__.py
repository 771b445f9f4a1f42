"""What `make cluster` needs to run a whole cluster on one machine."""
