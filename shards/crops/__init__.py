"""Crops: random parameters as arrays (`recipe`), and the engines that execute them."""
