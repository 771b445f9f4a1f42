"""The public protocol, shared by the SDK and the node: keys, values, frames, messages, limits, JSON forms.

Pure functions over bytes and plain values. Whatever comes from the other side is checked here, at the edge:
a malformed *message* raises ``ValueError`` (or its subclass ``FrameError``), a well-formed message that asks
for something impossible raises ``InvalidRequest`` naming the field, the value and the limit.
"""
