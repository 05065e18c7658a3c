"""Crops: random parameters as arrays (`recipe`), and engines that execute them."""
