"""What a thin image is: its descriptor, its record and its place in a repository."""
