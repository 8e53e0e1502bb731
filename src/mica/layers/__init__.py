"""What a stack of layers is: its method, and how it is mounted."""
