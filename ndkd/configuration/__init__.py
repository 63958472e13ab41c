"""Configurations as text: found, checked, changed; no torch."""
