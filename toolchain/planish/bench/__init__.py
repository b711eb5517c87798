"""Time and memory of artifacts, measured so that somebody else can believe it. See docs/bench.md."""
