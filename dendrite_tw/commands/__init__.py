"""Dendrite's tools: each a program of its own and a word after ``dendrite``.

``generate-keys --private-key key.pem`` and ``dendrite generate-keys --private-key key.pem`` are the same.
"""
