"""Who made a bundle, who ran it, and what a consumer asks of both. See docs/trust.md."""
