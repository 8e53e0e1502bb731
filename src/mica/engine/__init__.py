"""What engines store and mount, whichever they are: layers, unions, archives. Adapters are in `drivers`."""
