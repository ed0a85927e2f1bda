"""The tools that make the notebooks a package (tangle) and a book (weave)."""
