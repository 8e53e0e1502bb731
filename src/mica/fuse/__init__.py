"""The FUSE protocol and file systems on it."""
