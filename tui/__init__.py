"""The terminal dashboard of a ring: prompts in, streamed text out, and where the time of every token goes."""
