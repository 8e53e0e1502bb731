"""Recipes (wish lists): which images a repository is to have, and keeping it so."""
