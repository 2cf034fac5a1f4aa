"""The one exception that is meant for a person."""


class UserError(Exception):
    """A mistake that a person can mend: one sentence that says what is wrong, where, and what to do.

    Entry points print the sentence and exit with status 2; library callers may catch it.
    """
