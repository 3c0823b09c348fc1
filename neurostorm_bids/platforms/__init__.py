"""Adapters to platforms that start the program in a way of their own: Boutiques (CBRAIN), Brainlife."""
