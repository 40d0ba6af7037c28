"""The command line: reads what was asked, calls the library, prints what came of it."""
