"""Verified content on this machine: objects, parts, images, the room that they take, and their removal."""
