"""Decides for a caller, executes, and records."""
