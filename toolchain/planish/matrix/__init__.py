"""`planish build`: several models x recipes x targets from one file, each bundle made again only when an input changed.

Nothing here imports torch but what compiles: a build that has nothing to do must cost no more than looking.
"""
