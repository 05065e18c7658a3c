"""The live page: answers in words, charts, galleries."""
