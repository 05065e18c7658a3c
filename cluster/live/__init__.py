"""The live page: what a run answers when a person looks at it in a browser."""
