"""What all engines store and mount: layers, unions, archives. Adapters are in `drivers`."""
