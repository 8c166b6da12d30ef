"""HTTP over RingClient: OpenAI's API, `/generate`, health and metrics. In reading order: serve, app, front, the forms."""
