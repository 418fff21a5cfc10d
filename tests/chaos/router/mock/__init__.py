"""Mock instances: real processes and real HTTP, but the tokens are a function and the keys and values are bookkeeping.

`server` holds the routes, `serving` a request's way: its `wish`, the ticket (`tickets` here, `puller` there), the
tokens (`generation` in a made-up `language`), the answer (`wire`, over a `line` on which `faults` strike). The
`account` remembers what was held and what was done wrongly.
"""
