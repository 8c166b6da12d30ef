"""HTTP over RingClient: OpenAI's API, `/generate`, health and metrics.

In reading order: `serve` starts it, `app` has the routes, every request passes `front` and is read by `body`; `generate`,
`completions` and `chat` say what is asked and how it is answered, `answer` runs it and `write` sends it.
"""
