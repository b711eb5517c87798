"""Program to program: the shared IR, its composite operators and the passes over it."""
