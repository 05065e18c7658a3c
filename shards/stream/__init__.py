"""The one sample order: manifest, permutation, slots, journal, batches."""
