"""The verbs: one function per arrow of the flow, the same from Python and from the command line."""
