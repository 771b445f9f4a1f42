"""Requests that nobody should send: to decoders, to the HTTP faces, to a node's peer link and to a real process."""
