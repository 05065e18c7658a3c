"""How each file of golden vectors is compared with the product's own functions."""
