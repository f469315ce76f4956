"""A bench that times two subjects against each other and knows when not to believe its own times.

Subjects are what is timed (`subjects`, `decoding`); a session runs them in randomised blocks between sentinels, and the
judging reads the session's table. The bench knows no protocol.
"""
