"""Layers made by several processes and machines: a queue hands them out, a table tells what became of them."""
