"""Volumes in files: where they are, what they say of themselves, reading, writing, and how outputs are published."""
