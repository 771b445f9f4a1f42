"""What a power cut leaves of a node's disk: every state that it may leave, rebuilt from a trace of system calls."""
