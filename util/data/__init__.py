"""Data sets and what becomes of an image before a model sees it."""
