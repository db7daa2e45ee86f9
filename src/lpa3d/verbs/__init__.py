"""The verbs: each one's whole signature and docstring, the checks of its arguments, and one call."""
