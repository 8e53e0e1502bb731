"""Recipes (wish lists): the images that a repository is to have, and the rounds that bring them."""
