"""What a failed compile leaves behind, what it says, and the smallest model that shows it again.

A record names paths and commands of its user; it stays in the user's cache. What leaves the machine is made by
`planish.failures.folder` alone, which takes them out.
"""
