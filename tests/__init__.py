"""Tests of Ackord, on the same ladder as the code."""
