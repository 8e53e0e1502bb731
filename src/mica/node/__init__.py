"""The former name of the rooms `layers`, `dataplane` and `daemon`; only what scripts outside import is kept."""
