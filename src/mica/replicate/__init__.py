"""Copies of whole repositories at other places, which follow their source."""
