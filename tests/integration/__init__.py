"""Tests against real services and real processes."""
