"""Before a ring starts: whether a model fits some machines, how to cut it over them, and how fast that will be."""
