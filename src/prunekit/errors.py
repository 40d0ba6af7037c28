"""What a user can mend: said in one line, with exit code 2 on the command line."""


class InputError(ValueError):
    """An error the user can mend: what was given, what is possible, what to do, in one line."""
