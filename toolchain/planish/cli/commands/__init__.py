"""One module per command. What is heavy (torch, transformers, SDKs) is imported inside, so that --help is quick."""
