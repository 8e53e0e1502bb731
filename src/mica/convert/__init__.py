"""Images become published layers and thin images."""
