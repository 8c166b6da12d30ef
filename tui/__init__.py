"""The dashboard: what a ring does, live in a terminal. It is a client of `ring.client` and knows nothing else of the ring.

Reading order: `messages.py` (all that it is ever told), `feed.py` and `record.py` (where that comes from), `state/` (what
it knows), `widgets/` and `screens/` (how that looks), `app.py` (the whole).
"""
